"""Gap sentences (PEGASUS, Zhang et al. 2020): principal sentences are taken out of a document and generated.

A sentence is principal (section 3.1 of the paper) if it has a high ROUGE-1 F1 with the rest of the document.
ind scores each sentence alone and takes the best; seq takes one after another such that all that are chosen score best
together. orig counts a token as often as it occurs, uniq once. Besides there are lead (the first sentences) and random.

Differences from the paper: unigrams are token ids, not words; sentences end where `SentenceEnds` says.
"""

import numpy as np

from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.objectives.sentences import split_units
from transpooler.data_pipeline.objectives.vocabulary import Vocabulary


def make_pair(
    source: np.ndarray, summary: np.ndarray | None, config: DataConfig, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Replace principal sentences by <gap>; returns the document with gaps and the sentences in order, int64 ids.

    Up to `gap_fraction` of the sentences (at least one) are selected, as many as fit into the target.
    `gap_kept_fraction` of the selected ones stay in the source (section 6.1 of the paper). Each score is multiplied by
    a random factor between 1 and 1 + `gap_noise`.
    """
    room = config.max_target_tokens - 1
    units = split_units(source, vocabulary.sentence_ends)
    lengths = np.diff([0, *(stop for _, stop in units)])
    wanted = max(1, round(config.gap_fraction * len(units)))
    factors = 1 + config.gap_noise * rng.random(len(units))
    ranked = _rank(source, lengths, config.gap_selection, factors, wanted, room, rng)
    chosen = sorted(_choose_fitting(ranked, lengths, wanted, room)) or [int(ranked[0])]
    num_kept = min(round(config.gap_kept_fraction * len(chosen)), len(chosen) - 1)
    kept = set(rng.choice(chosen, size=num_kept, replace=False).tolist()) if num_kept else set()
    pieces: list[np.ndarray | list[int]] = []
    end = 0
    for unit in chosen:
        start, stop = units[unit]
        pieces += [source[end:start], source[start:stop] if unit in kept else [vocabulary.special.gap]]
        end = stop
    target = np.concatenate([source[slice(*units[unit])] for unit in chosen])
    return np.concatenate([*pieces, source[end:]]).astype(np.int64), target[:room]


def _choose_fitting(ranked: np.ndarray, lengths: np.ndarray, wanted: int, room: int) -> list[int]:
    """Choose the first `wanted` of the ranked sentences that fit into `room` tokens together."""
    chosen: list[int] = []
    for unit in ranked.tolist():
        if len(chosen) == wanted:
            break
        if lengths[unit] <= room:
            chosen.append(unit)
            room -= int(lengths[unit])
    return chosen


def _rank(
    source: np.ndarray,
    lengths: np.ndarray,
    selection: str,
    factors: np.ndarray,
    wanted: int,
    room: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the numbers of the sentences, the best first."""
    if selection == "lead":
        return np.arange(len(lengths))
    if selection == "random":
        return rng.permutation(len(lengths))
    rouge = _Rouge(source, lengths, unique=selection.endswith("uniq"))
    if selection.startswith("ind"):
        return np.argsort(-rouge.score_next() * factors, kind="stable")
    chosen: list[int] = []
    left = np.ones(len(lengths), bool)
    while len(chosen) < wanted:
        scores = np.where(left & (lengths <= room), rouge.score_next() * factors, -1.0)
        best = int(np.argmax(scores))
        if scores[best] < 0:
            break
        chosen.append(best)
        left[best] = False
        room -= int(lengths[best])
        rouge.choose(best)
    return np.array(chosen or [int(np.argmin(lengths))])


class _Rouge:
    """ROUGE-1 F1 of (chosen sentences + one more) with the rest of the document, for every sentence at once."""

    def __init__(self, source: np.ndarray, lengths: np.ndarray, *, unique: bool) -> None:
        self.unique = unique
        counts = np.bincount(source)
        present = np.flatnonzero(counts > 0)
        number = np.empty(len(counts), np.int32)
        number[present] = np.arange(len(present))
        self._rest = counts[present]  # occurrences of each token in sentences that are not chosen
        self._chosen = np.zeros_like(self._rest)
        unit_of = np.repeat(np.arange(len(lengths)), lengths)
        fits = len(lengths) * len(present) < 2**31
        pairs = (unit_of * len(present) + number[source]).astype(np.int32 if fits else np.int64)
        pairs.sort()
        first = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))  # np.unique would take twice as long
        self._count = np.diff(first, append=len(pairs))
        self._unit = unit_of[first]
        self._token = pairs[first] - self._unit * len(present)
        self._num_units = len(lengths)

    def score_next(self) -> np.ndarray:
        """Return the F1 that each sentence would give if it were chosen next."""
        chosen, rest = self._chosen, self._rest
        chosen_then = chosen[self._token] + self._count
        rest_then = rest[self._token] - self._count
        if self.unique:
            chosen, rest, chosen_then, rest_then = (
                (n > 0).astype(np.int64) for n in (chosen, rest, chosen_then, rest_then)
            )
        overlap = self._sum(np.minimum(chosen, rest), np.minimum(chosen_then, rest_then))
        # Moving a sentence to the chosen changes the number of distinct tokens, but not the number of tokens.
        total = self._sum(chosen + rest, chosen_then + rest_then) if self.unique else (chosen + rest).sum()
        return 2 * overlap / np.maximum(total, 1)

    def choose(self, unit: int) -> None:
        """Move a sentence from the rest to the chosen."""
        own = self._unit == unit
        self._chosen[self._token[own]] += self._count[own]
        self._rest[self._token[own]] -= self._count[own]

    def _sum(self, now: np.ndarray, then: np.ndarray) -> np.ndarray:
        """For each sentence, sum a quantity over all tokens, with `then` instead of `now` at the sentence's tokens."""
        change = np.bincount(self._unit, then - now[self._token], minlength=self._num_units)
        return now.sum() + change

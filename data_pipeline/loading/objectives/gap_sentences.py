"""Gap sentences (PEGASUS, Zhang et al. 2020): principal sentences are taken out of a document and generated.

Which are principal (section 3.1 of the paper), all by ROUGE-1 F1 of the chosen with the rest of the document:
ind: each sentence scored alone, the best taken; seq: taken one by one, such that the chosen together score best;
orig: tokens count as often as they occur; uniq: once. Beside them lead (the first ones) and random.

Differences from the paper: unigrams are token ids, not words; sentences end where `SentenceEnds` says.
"""

import numpy as np

from transpooler.data_pipeline.loading.objectives.sentences import SentenceEnds, split_units
from transpooler.data_pipeline.tokenizer import SpecialIds


def gap_sentences(
    source: np.ndarray,
    special: SpecialIds,
    rng: np.random.Generator,
    *,
    boundaries: SentenceEnds,
    gap_fraction: float,
    max_target_tokens: int,
    selection: str = "ind_orig",
    noise: float = 0.2,
    kept_fraction: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Select up to `gap_fraction` of the sentences (at least one) while they fit into the target: it is them, in order.

    Each selected one is replaced by <gap>, but for `kept_fraction` of them, which stay in the source, too (section 6.1
    of the paper). Scores are multiplied by 1 to 1 + `noise` at random.
    """
    units = split_units(source, boundaries)
    lengths = np.diff([0, *(stop for _, stop in units)])
    wanted = max(1, round(gap_fraction * len(units)))
    factors = 1 + noise * rng.random(len(units))
    ranked = _ranking(source, lengths, selection, factors, wanted, max_target_tokens, rng)
    chosen = sorted(_fitting(ranked, lengths, wanted, max_target_tokens)) or [int(ranked[0])]
    num_kept = min(round(kept_fraction * len(chosen)), len(chosen) - 1)
    kept = set(rng.choice(chosen, size=num_kept, replace=False).tolist()) if num_kept else set()
    pieces: list[np.ndarray | list[int]] = []
    end = 0
    for unit in chosen:
        start, stop = units[unit]
        pieces += [source[end:start], source[start:stop] if unit in kept else [special.gap]]
        end = stop
    target = np.concatenate([source[slice(*units[unit])] for unit in chosen])
    return np.concatenate([*pieces, source[end:]]).astype(np.int64), target[:max_target_tokens]


def _fitting(ranked: np.ndarray, lengths: np.ndarray, wanted: int, room: int) -> list[int]:
    """The first `wanted` of the ranked sentences that fit into `room` tokens together."""
    chosen: list[int] = []
    for unit in ranked.tolist():
        if len(chosen) == wanted:
            break
        if lengths[unit] <= room:
            chosen.append(unit)
            room -= int(lengths[unit])
    return chosen


def _ranking(
    source: np.ndarray,
    lengths: np.ndarray,
    selection: str,
    factors: np.ndarray,
    wanted: int,
    room: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Sentences from the most to the least wanted."""
    if selection == "lead":
        return np.arange(len(lengths))
    if selection == "random":
        return rng.permutation(len(lengths))
    rouge = _Rouge(source, lengths, unique=selection.endswith("uniq"))
    if selection.startswith("ind"):
        return np.argsort(-rouge.with_chosen() * factors, kind="stable")
    chosen: list[int] = []
    left = np.ones(len(lengths), bool)
    while len(chosen) < wanted:
        scores = np.where(left & (lengths <= room), rouge.with_chosen() * factors, -1.0)
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
        self._rest = counts[present]  # of each token, how many are in sentences that are not chosen
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

    def with_chosen(self) -> np.ndarray:
        """F1 for each sentence, were it chosen next."""
        chosen, rest = self._chosen, self._rest
        chosen_then = chosen[self._token] + self._count
        rest_then = rest[self._token] - self._count
        if self.unique:
            chosen, rest, chosen_then, rest_then = (
                (n > 0).astype(np.int64) for n in (chosen, rest, chosen_then, rest_then)
            )
        overlap = self._sum(np.minimum(chosen, rest), np.minimum(chosen_then, rest_then))
        # A sentence that moves from the one side to the other changes the number of types, not that of tokens.
        total = self._sum(chosen + rest, chosen_then + rest_then) if self.unique else (chosen + rest).sum()
        return 2 * overlap / np.maximum(total, 1)

    def choose(self, unit: int) -> None:
        """Move a sentence from the rest to the chosen."""
        own = self._unit == unit
        self._chosen[self._token[own]] += self._count[own]
        self._rest[self._token[own]] -= self._count[own]

    def _sum(self, now: np.ndarray, then: np.ndarray) -> np.ndarray:
        """Sum over all tokens of a quantity, for each sentence with `then` in place of `now` at its own tokens."""
        change = np.bincount(self._unit, then - now[self._token], minlength=self._num_units)
        return now.sum() + change

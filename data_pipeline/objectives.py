"""Self-supervised objectives: documents to (source, target) pairs. Pure functions of ids, settings and a generator.

Targets and sources come without </s>; the loader cuts them to their limits and appends it.
"""

import numpy as np

from data_pipeline.tokenizer import SpecialIds

MAX_UNIT_TOKENS = 128
"""Longer stretches without an end of sentence are cut here."""
MIN_UNIT_TOKENS = 6
"""Shorter sentences (a bracket on a line of its own, "e.g.") join the next one."""


def text_infilling(
    source: np.ndarray,
    special: SpecialIds,
    rng: np.random.Generator,
    *,
    mask_fraction: float,
    mean_span_tokens: float,
    max_target_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace spans by one <mask> each; generate what was there.

    A document of at most `max_target_tokens` tokens: BART (Lewis et al. 2020): span lengths are Poisson,
    `mask_fraction` of the tokens are masked, spans of length 0 insert a <mask>; the target is the whole document.

    A longer one cannot be generated whole. Then as many spans as the target can hold (but not above `mask_fraction`)
    are masked, spread evenly at random over the document; the target is `<mask> span <mask> span ...` in order.
    """
    if len(source) <= max_target_tokens:
        lengths = _span_lengths(rng, mean_span_tokens, round(mask_fraction * len(source)), cost=0, shortest=0)
        return _with_masks(source, lengths, special.mask, rng)[0], source
    lengths = _span_lengths(rng, mean_span_tokens, max_target_tokens, cost=1, shortest=1)
    fitting = lengths[np.cumsum(lengths) <= mask_fraction * len(source)]
    lengths = fitting if len(fitting) else np.ones(1, np.int64)
    corrupted, spans = _with_masks(source, lengths, special.mask, rng)
    pieces = [piece for span in spans for piece in ([special.mask], span)]
    return corrupted, np.concatenate(pieces).astype(np.int64)


def _span_lengths(rng: np.random.Generator, mean: float, budget: int, *, cost: int, shortest: int) -> np.ndarray:
    """Poisson span lengths that use up `budget` tokens, each span costing its length + `cost`; the last is cut."""
    drawn = np.maximum(rng.poisson(mean, size=max(8, int(2 * budget / mean))), shortest)
    used = np.cumsum(drawn + cost)
    num_whole = int(np.searchsorted(used, budget, side="right"))
    left = budget - (int(used[num_whole - 1]) if num_whole else 0) - cost
    return np.append(drawn[:num_whole], left) if left > 0 else drawn[:num_whole]


def _with_masks(
    source: np.ndarray, lengths: np.ndarray, mask: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Place spans of the given lengths at random, none touching another; returns the corrupted source and the spans.

    Drawing distinct gaps between the tokens that stay gives every placement the same chance.
    """
    num_kept = len(source) - int(lengths.sum())
    lengths = lengths[: num_kept + 1]
    num_kept = len(source) - int(lengths.sum())
    gaps = np.sort(rng.choice(num_kept + 1, size=len(lengths), replace=False))
    starts = gaps + np.cumsum(lengths) - lengths
    pieces: list[np.ndarray | list[int]] = []
    spans: list[np.ndarray] = []
    end = 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        pieces += [source[end:start], [mask]]
        end = start + length
        spans.append(source[start:end])
    return np.concatenate([*pieces, source[end:]]).astype(np.int64), spans


def gap_sentences(
    source: np.ndarray,
    special: SpecialIds,
    rng: np.random.Generator,
    *,
    boundaries: "SentenceEnds",
    gap_fraction: float,
    max_target_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """PEGASUS (Zhang et al. 2020): take out principal sentences, each replaced by <gap>; generate them, in order.

    Sentences are ranked by ROUGE-1 F1 (on ids) with the rest of the document, times 1..1.2 at random so that epochs
    differ; the best are taken while they fit into the target, up to `gap_fraction` of all. At least one is.
    """
    units = split_units(source, boundaries)
    scores = _principal_scores(source, units) * (1 + 0.2 * rng.random(len(units)))
    wanted = max(1, round(gap_fraction * len(units)))
    chosen: list[int] = []
    left = max_target_tokens
    for unit in np.argsort(-scores, kind="stable").tolist():
        length = units[unit][1] - units[unit][0]
        if len(chosen) == wanted:
            break
        if length <= left:
            chosen.append(unit)
            left -= length
    chosen = sorted(chosen) or [int(np.argmax(scores))]
    pieces: list[np.ndarray | list[int]] = []
    end = 0
    for unit in chosen:
        start, stop = units[unit]
        pieces += [source[end:start], [special.gap]]
        end = stop
    target = np.concatenate([source[slice(*units[unit])] for unit in chosen])
    return np.concatenate([*pieces, source[end:]]).astype(np.int64), target[:max_target_tokens]


class SentenceEnds:
    """Where sentences end, decided on ids: tables over the vocabulary, made once from its tokens' text.

    A sentence ends after a token with a newline (so that lines of code are units), and after a token that ends in
    . ! or ? if the next one begins with white space.
    """

    def __init__(self, tokens: list[str]) -> None:
        texts = [token.translate(_VISIBLE_WHITE_SPACE) for token in tokens]
        self.has_newline = np.array(["\n" in text for text in texts])
        self.ends = np.array([text.rstrip("\"')”’").endswith((".", "!", "?", "。")) for text in texts])
        self.begins_with_space = np.array([text[:1].isspace() for text in texts])

    def after(self, source: np.ndarray) -> np.ndarray:
        """Positions p such that a sentence ends before token p (0 and the end of the document left out)."""
        ends = self.has_newline[source[:-1]] | (self.ends[source[:-1]] & self.begins_with_space[source[1:]])
        return np.flatnonzero(ends) + 1


# Byte-level BPE spells space, newline, tab and return as Ġ Ċ ĉ č; SentencePiece spells space as ▁.
_VISIBLE_WHITE_SPACE = str.maketrans({"Ġ": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r", "▁": " "})


def split_units(source: np.ndarray, boundaries: SentenceEnds) -> list[tuple[int, int]]:
    """Cut a document into sentences [start, stop), at least two where it has two tokens."""
    units: list[tuple[int, int]] = []
    start = 0
    for stop in [*boundaries.after(source).tolist(), len(source)]:
        while stop - start > MAX_UNIT_TOKENS:
            units.append((start, start + MAX_UNIT_TOKENS))
            start += MAX_UNIT_TOKENS
        if stop - start >= MIN_UNIT_TOKENS or (stop == len(source) and start < stop):
            units.append((start, stop))
            start = stop
    if len(units) == 1 and len(source) > 1:
        units = [(0, len(source) // 2), (len(source) // 2, len(source))]
    return units


def _principal_scores(source: np.ndarray, units: list[tuple[int, int]]) -> np.ndarray:
    """ROUGE-1 F1 of each unit with the rest of the document, on ids with multiplicity."""
    lengths = np.array([stop - start for start, stop in units])
    _, ids = np.unique(source, return_inverse=True)
    in_document = np.bincount(ids)
    unit_of = np.repeat(np.arange(len(units)), lengths)
    pairs, in_unit = np.unique(unit_of * len(in_document) + ids, return_counts=True)
    unit, token = np.divmod(pairs, len(in_document))
    overlap = np.bincount(unit, np.minimum(in_unit, in_document[token] - in_unit), minlength=len(units))
    return 2 * overlap / len(source)  # F1 = 2 overlap / (unit + rest), and unit + rest is the document

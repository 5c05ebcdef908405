"""Denoising (BART, Lewis et al. 2020): spans of a document are masked, and generated."""

import numpy as np

from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.objectives.sentences import permute_sentences
from transpooler.data_pipeline.objectives.vocabulary import Vocabulary


def make_pair(
    source: np.ndarray, summary: np.ndarray | None, config: DataConfig, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Replace each span of tokens by one <mask>; returns the corrupted document and the target, int64 ids.

    A document that fits into the target is treated as in BART: span lengths are drawn from a Poisson distribution,
    `mask_fraction` of the tokens are masked, a span of length 0 inserts a <mask>, and the target is the whole document.

    A longer document cannot be generated whole. As many spans as the target can hold (but at most `mask_fraction` of
    the tokens) are masked at random places; the target is `<mask> span <mask> span ...` in order.
    """
    limit, mask = config.max_target_tokens - 1, vocabulary.special.mask
    mean, fraction = config.mean_span_tokens, config.mask_fraction
    permuted = permute_sentences(source, vocabulary.sentence_ends, rng) if config.permute_sentences else source
    if len(source) <= limit:
        lengths = _draw_lengths(rng, mean, round(fraction * len(source)), cost=0, shortest=0)
        return _mask_spans(permuted, lengths, mask, rng)[0], source
    lengths = _draw_lengths(rng, mean, limit, cost=1, shortest=1)
    fitting = lengths[np.cumsum(lengths) <= fraction * len(source)]
    return _mask_spans(permuted, fitting if len(fitting) else np.ones(1, np.int64), mask, rng)


def _draw_lengths(rng: np.random.Generator, mean: float, budget: int, *, cost: int, shortest: int) -> np.ndarray:
    """Draw Poisson span lengths that use up `budget`; a span costs its length + `cost`, and the last one is cut."""
    drawn = np.maximum(rng.poisson(mean, size=max(8, int(2 * budget / mean))), shortest)
    used = np.cumsum(drawn + cost)
    num_whole = int(np.searchsorted(used, budget, side="right"))
    left = budget - (int(used[num_whole - 1]) if num_whole else 0) - cost
    return np.append(drawn[:num_whole], left) if left > 0 else drawn[:num_whole]


def _mask_spans(
    source: np.ndarray, lengths: np.ndarray, mask: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Place spans of the given lengths at random, such that no two touch as long as there are gaps enough.

    Returns the source with a mask in place of each span, and the spans with a mask before each. The spans go into
    distinct gaps between the tokens that stay, so every placement is equally likely. Where more spans than gaps are
    asked for (a `mask_fraction` near 1), gaps are drawn with repetition, and spans touch.
    """
    num_gaps = len(source) - int(lengths.sum()) + 1
    gaps = np.sort(rng.choice(num_gaps, size=len(lengths), replace=len(lengths) > num_gaps))
    before = np.cumsum(lengths) - lengths  # masked tokens before each span
    starts, size = gaps + before, len(source) + 1
    border = np.bincount(starts, minlength=size) - np.bincount(starts + lengths, minlength=size)
    masked = np.cumsum(border[:-1]) > 0
    return _insert(source[~masked], gaps, mask), _insert(source[masked], before, mask)


def _insert(tokens: np.ndarray, places: np.ndarray, token: int) -> np.ndarray:
    """Insert `token` before each of the `places` in `tokens` (int64); places are sorted and may repeat."""
    at = places + np.arange(len(places))
    result = np.full(len(tokens) + len(places), token, np.int64)
    others = np.ones(len(result), bool)
    others[at] = False
    result[others] = tokens
    return result

"""Denoising: a document to (source, target). A pure function of ids, settings and a generator.

Targets and sources come without </s>; the loader cuts them to their limits and appends it.
"""

import numpy as np

from transpooler.data_pipeline.tokenizer import SpecialIds


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
    return _with_masks(source, lengths, special.mask, rng)


def _span_lengths(rng: np.random.Generator, mean: float, budget: int, *, cost: int, shortest: int) -> np.ndarray:
    """Poisson span lengths that use up `budget` tokens, each span costing its length + `cost`; the last is cut."""
    drawn = np.maximum(rng.poisson(mean, size=max(8, int(2 * budget / mean))), shortest)
    used = np.cumsum(drawn + cost)
    num_whole = int(np.searchsorted(used, budget, side="right"))
    left = budget - (int(used[num_whole - 1]) if num_whole else 0) - cost
    return np.append(drawn[:num_whole], left) if left > 0 else drawn[:num_whole]


def _with_masks(
    source: np.ndarray, lengths: np.ndarray, mask: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Place spans of the given lengths at random, none touching another: the source with a mask for each span, and the
    spans with a mask before each.

    Drawing distinct gaps between the tokens that stay gives every placement the same chance.
    """
    num_kept = len(source) - int(lengths.sum())
    lengths = lengths[: num_kept + 1]
    num_kept = len(source) - int(lengths.sum())
    gaps = np.sort(rng.choice(num_kept + 1, size=len(lengths), replace=False))
    before = np.cumsum(lengths) - lengths  # masked tokens before each span
    border = np.zeros(len(source) + 1, np.int8)  # starts differ from each other, and so do ends
    border[gaps + before] += 1
    border[gaps + before + lengths] -= 1
    masked = np.cumsum(border[:-1], dtype=np.int8).view(bool)
    return _inserted(source[~masked], gaps, mask), _inserted(source[masked], before, mask)


def _inserted(tokens: np.ndarray, places: np.ndarray, token: int) -> np.ndarray:
    """`tokens` (int64) with `token` before each of the `places`, which are sorted; one may stand more than once."""
    at = places + np.arange(len(places))
    result = np.full(len(tokens) + len(places), token, np.int64)
    others = np.ones(len(result), bool)
    others[at] = False
    result[others] = tokens
    return result

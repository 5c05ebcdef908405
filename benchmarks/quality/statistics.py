"""Means and intervals over documents and seeds, and differences between arms that read the same documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def estimate(values_SN: np.ndarray, weights_N: np.ndarray, *, seed: int = 0) -> Estimate:
    """Weighted mean of `values_SN` (seeds, documents); seeds and documents are both drawn with replacement.

    A loss per token is the mean of the documents' losses per token, weighted by their tokens. One seed alone says
    nothing about other seeds: then only documents are drawn.
    """
    return _interval(_mean(values_SN, weights_N), _resampled(values_SN, weights_N, np.random.default_rng(seed)))


def difference(ours_SN: np.ndarray, baseline_SN: np.ndarray, weights_N: np.ndarray, *, seed: int = 0) -> Estimate:
    """`ours` less `baseline`, paired: runs of one seed begin with the same weights and read the same documents."""
    return estimate(ours_SN - baseline_SN, weights_N, seed=seed)


def _mean(values_SN: np.ndarray, weights_N: np.ndarray) -> float:
    return float((values_SN.mean(0) * weights_N).sum() / weights_N.sum())


def _resampled(values_SN: np.ndarray, weights_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    num_seeds, count = values_SN.shape
    means = np.empty(SAMPLES)
    for sample in range(SAMPLES):
        seeds, documents = rng.integers(0, num_seeds, num_seeds), rng.integers(0, count, count)
        means[sample] = _mean(values_SN[np.ix_(seeds, documents)], weights_N[documents])
    return means


def _interval(mean: float, samples: Sequence[float] | np.ndarray) -> Estimate:
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(mean=mean, low=float(low), high=float(high))

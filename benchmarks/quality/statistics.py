"""Means and intervals over documents and seeds, and differences between arms that read the same documents."""

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
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def estimate(values_SN: np.ndarray, weights_N: np.ndarray, *, seed: int = 0) -> Estimate:
    """Estimate the weighted mean of `values_SN` (seeds, documents); both are drawn with replacement.

    A loss per token is the mean of the documents' losses per token, weighted by their tokens. One seed says nothing
    about others: then only documents are drawn.
    """
    samples = _resample(values_SN, weights_N, np.random.default_rng(seed))
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(mean=_mean(values_SN, weights_N), low=float(low), high=float(high))


def compare(ours_SN: np.ndarray, baseline_SN: np.ndarray, weights_N: np.ndarray, *, seed: int = 0) -> Estimate:
    """Estimate `ours` less `baseline`, paired: runs of a seed share their first weights and their documents."""
    return estimate(ours_SN - baseline_SN, weights_N, seed=seed)


def _mean(values_SN: np.ndarray, weights_N: np.ndarray) -> float:
    return float((values_SN.mean(0) * weights_N).sum() / weights_N.sum())


def _resample(values_SN: np.ndarray, weights_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    num_seeds, count = values_SN.shape
    means = np.empty(SAMPLES)
    for sample in range(SAMPLES):
        seeds, documents = rng.integers(0, num_seeds, num_seeds), rng.integers(0, count, count)
        means[sample] = _mean(values_SN[np.ix_(seeds, documents)], weights_N[documents])
    return means

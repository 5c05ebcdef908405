"""ROUGE with the `rouge-score` package, lead-n summaries, and bootstrap intervals."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BOOTSTRAP_SAMPLES = 2000

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def rouge(reference: str, summary: str) -> dict[str, float]:
    """F1 of ROUGE-1, -2, -L and -Lsum (Lin 2004), in 0..1, with Porter stemming; Lsum compares sentence by sentence."""
    scores = _scorer().score(_one_sentence_a_line(reference), _one_sentence_a_line(summary))
    return {name: float(scores[name].fmeasure) for name in ROUGE_TYPES}


def lead(document: str, num_words: int) -> str:
    """The document's first `num_words` words: the baseline every summarizer has to beat."""
    return " ".join(document.split(maxsplit=num_words)[:num_words])


def count_words(text: str) -> int:
    """Whitespace-separated words."""
    return len(text.split())


def bootstrap(values: Sequence[float], *, seed: int) -> Interval:
    """Mean of `values` and the 95 % percentile interval of the means of resamples with replacement."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(BOOTSTRAP_SAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))


def _one_sentence_a_line(text: str) -> str:
    return _SENTENCE_END.sub("\n", text.strip())


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)

"""ROUGE in two dialects, lead-n summaries, and bootstrap intervals.

Dialects differ more than models often do, so every table names the one it shows. Both split texts into sentences at
line feeds and after `.`, `!` and `?`, take words in small letters without punctuation, and leave no word out.

- rouge-score: that package, with its stemmer, which is NLTK's variant of Porter's. ROUGE-L compares whole texts;
  ROUGE-Lsum sentence by sentence.
- rouge-1.5.5: Lin's Perl script with `-n 2 -m`, which most papers report. Its stemmer is Porter's own, and its ROUGE-L
  is the union of the longest common subsequences of sentences (Lin 2004, section 3.2), so that ROUGE-L and ROUGE-Lsum
  are the same. The script also looks irregular forms up in WordNet's lists of exceptions (`went` is `go`); this does
  not.
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from transpooler.trainer.config.evaluation import ROUGE_DIALECTS

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BOOTSTRAP_SAMPLES = 2000

_WORD = re.compile(r"[0-9a-z]+")
_SMALL_LETTERS = {ord(letter): letter.lower() for letter in string.ascii_uppercase}
_STEMMED_CHARACTERS = 4
"""Shorter words are not stemmed, in either dialect."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def rouge(reference: str, summary: str, dialect: str) -> dict[str, float]:
    """F1 of ROUGE-1, -2, -L and -Lsum (Lin 2004), in 0..1, as one of ROUGE_DIALECTS computes them."""
    scores = _scorer(dialect).score(_one_sentence_a_line(reference), _one_sentence_a_line(summary))
    found = {name: float(scores[name].fmeasure) for name in ROUGE_TYPES}
    return found if dialect == "rouge-score" else found | {"rougeL": found["rougeLsum"]}


def dialect_of(results: Mapping[str, Any]) -> str:
    """The dialect of an evaluation's ROUGE, in metrics.json or metrics.jsonl; the first where none was noted yet."""
    return str(results.get("rouge_dialect", ROUGE_DIALECTS[0]))


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


class _PerlTokenizer:
    """Words as ROUGE-1.5.5 takes them: letters and digits of ASCII, stemmed by Porter's algorithm."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS)  # as his own Perl program

    def tokenize(self, text: str) -> list[str]:
        """Words in small letters; those of four letters or more are stemmed."""
        words = _WORD.findall(text.translate(_SMALL_LETTERS))
        return [word if len(word) < _STEMMED_CHARACTERS else self._stemmer.stem(word) for word in words]


@cache
def _scorer(dialect: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    if dialect == "rouge-score":
        return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    return RougeScorer(list(ROUGE_TYPES), tokenizer=_PerlTokenizer())

"""Settings of generation and of held-out evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from transpooler.data_pipeline.config import SPLITS


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How summaries are generated (evaluate, summarize)."""

    num_beams: int = 4
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    """Above 1 favours long summaries; greedy search (one beam) does not use it."""
    no_repeat_ngram_size: int = 0
    """Forbid n-grams from repeating; 0 = off."""
    batch_size: int = 8
    """Documents generated together."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("num_beams", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}; must be at least 1"
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            yield "min_new_tokens", f"is {self.min_new_tokens}; must lie in 0..max_new_tokens = {self.max_new_tokens}"
        if not isfinite(self.length_penalty):
            yield "length_penalty", f"is {self.length_penalty}; must be a finite number"
        if self.no_repeat_ngram_size < 0:
            yield "no_repeat_ngram_size", f"is {self.no_repeat_ngram_size}; must not be negative"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """`transpooler evaluate`: generated summaries against references."""

    split: str = "test"
    max_documents: int | None = None
    """Evaluate the first so many documents; null = all."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.split not in SPLITS:
            yield "split", f"is {self.split!r}; choose one of {', '.join(SPLITS)}"
        if self.max_documents is not None and self.max_documents < 1:
            yield "max_documents", f"is {self.max_documents}; must be at least 1, or null for all"

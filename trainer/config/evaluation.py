"""The `generation:` and `evaluation:` sections."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transpooler.common import at_least, between, one_of
from transpooler.data_pipeline.config import SPLITS
from transpooler.model.ops.decoding.precisions import PRECISIONS

ROUGE_DIALECTS = ("rouge-score", "rouge-1.5.5")
FORCED = ("forced_bos_token_id", "forced_eos_token_id")
"""Tokens that `generate` writes first and last, whatever the model says."""
_METRIC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How summaries are generated (evaluate, summarize)."""

    num_beams: int = at_least(1, 4)
    max_new_tokens: int = at_least(1, 256)
    min_new_tokens: int = at_least(0, 0)
    length_penalty: float = between(-100, 100, 1.0)
    """Above 1 favours long summaries; greedy search (one beam) does not use it."""
    no_repeat_ngram_size: int = at_least(0, 0)
    """Forbid n-grams from repeating; 0 = off."""
    forced_bos_token_id: int | None = at_least(0, None)
    """Token that every summary begins with, such as BART's <s> or a language of mBART; null = none."""
    forced_eos_token_id: int | None = at_least(0, None)
    """Token that ends a summary of the greatest length; null = none."""
    suppress_tokens: tuple[int, ...] = at_least(0, ())
    """Tokens that are never written, such as the padding of Marian."""
    batch_size: int = at_least(1, 8)
    """Documents generated together."""
    precision: str = one_of(PRECISIONS, "fp32")
    """Weights that write a summary, as they are read for each token on a CPU: fp32 keeps the model's own, bf16 and int8
    (one scale per output) round them. On a GPU bf16 converts the whole model. Validation while training ignores it."""

    def arguments(self) -> dict[str, Any]:
        """What `generate` of `transformers` takes, by its names."""
        return {
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "length_penalty": self.length_penalty if self.num_beams > 1 else 1.0,  # one beam has no use for it
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            **{name: getattr(self, name) for name in FORCED},
            "suppress_tokens": list(self.suppress_tokens) or None,
        }

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        if self.min_new_tokens > self.max_new_tokens:
            yield "min_new_tokens", f"is {self.min_new_tokens}; must lie in 0..max_new_tokens = {self.max_new_tokens}"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """`transpooler evaluate`: generated summaries against references."""

    split: str = one_of(SPLITS, "test")
    max_documents: int | None = at_least(1, None)
    """Evaluate this many documents from the start of the split; null = all."""
    rouge: str = one_of(ROUGE_DIALECTS, ROUGE_DIALECTS[0])
    """How ROUGE is computed, while training too: rouge-score (as that package does), or rouge-1.5.5 (as the Perl script
    does, which most papers use). They differ in stemming and in ROUGE-L: their numbers are not to be compared."""
    sources: bool = False
    """Also find the passages that each sentence of a summary was written from, which encodes every document once more;
    generated.jsonl then holds them, and each document as it was read (for `transpooler judge`)."""
    metrics: tuple[str, ...] = ()
    """Metrics of your own, module:function, called as metric(document, reference, summary), texts that return a number.
    The module must be importable; see docs/evaluating.md."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        for number, name in enumerate(self.metrics):
            if not _METRIC.fullmatch(name):
                yield f"metrics[{number}]", f"is {name!r}; write module:function, such as my_metrics:coverage"
            elif name in self.metrics[:number]:
                yield f"metrics[{number}]", f"is {name!r}, which stands there twice"

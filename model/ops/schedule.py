"""The pooling schedule as plain values (no torch here, so that it loads at once): stages, budgets, and their rules."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OPERATOR_NAMES = (
    *("successive_halving", "threshold", "hard", "random"),
    *("strided", "strided_mean", "weighted_mean", "iterative_softmax"),
)
"""The rows of `operators.OPERATORS`, which needs torch."""
SPAN_OPERATORS = ("successive_halving", "threshold", "hard", "random", "strided")
"""Those that keep tokens, and so can keep spans of them."""
WHOLE_OPERATORS = ("iterative_softmax",)
"""Those whose slots take from every token of the document: ranks that share it cannot each sum their own part."""
HIGHEST_BASE = 1e30
"""Of a pooler: base ** score and its gradient fit into float32."""


@dataclass(frozen=True, kw_only=True)
class PoolingStage:
    """One entry of the pooling schedule: pool what leaves encoder layer `after_layer`."""

    after_layer: int
    """1-based number of the encoder layer after which to pool."""
    length: int | tuple[int, ...] | None = None
    """Tokens kept of each document (shorter documents pass unchanged). Give this or `ratio`. A list makes one model for
    several budgets: training draws one of them in every step, and `--keep` chooses (the default is the largest)."""
    ratio: float | tuple[float, ...] | None = None
    """Share of the document's tokens kept, 1/2, 1/4, 1/8, ..., or a list of them. Give this or `length`."""
    operator: str = "successive_halving"
    """How tokens are pooled: successive_halving, threshold (a hard gather that every score learns from), or a baseline
    (hard, random, strided, strided_mean, weighted_mean, iterative_softmax)."""
    span: int = 1
    """Neighbouring tokens that are kept or dropped together, so that what is kept reads as text; `length` is a
    multiple of it. Language models read spans of 16 better than single tokens."""

    @property
    def spans(self) -> "PoolingStage":
        """The same stage, counted in spans."""
        return replace(self, span=1, length=self.length // self.span if isinstance(self.length, int) else None)

    def slots(self, num_tokens: int) -> int:
        """Slots that a document of `num_tokens` fills after the stage: min(length, n) or ceil(ratio · n).

        Spans are counted so, too: with a ratio the whole ones alone, so that a shorter last one is left out.
        """
        if self.span > 1:
            spans = max(1, num_tokens // self.span) if self.length is None else -(-num_tokens // self.span)
            return min(self.span * self.spans.slots(spans), num_tokens)
        if isinstance(self.length, int):
            return min(self.length, num_tokens)
        return -(-num_tokens // round(1 / self.single_ratio))

    def slots_of_each(self, num_tokens_B: "Tensor") -> "Tensor":
        """`slots` of a batch: int64 (B,) -> int64 (B,), without waiting for a GPU."""
        if self.span > 1:
            rest = 0 if self.length is None else self.span - 1
            spans_B = ((num_tokens_B + rest) // self.span).clamp(min=1)
            return (self.span * self.spans.slots_of_each(spans_B)).minimum(num_tokens_B)
        if isinstance(self.length, int):
            return num_tokens_B.clamp(max=self.length)
        divisor = round(1 / self.single_ratio)  # of positive numbers alone: OpenVINO rounds others towards zero
        return (num_tokens_B + (divisor - 1)) // divisor

    @property
    def single_ratio(self) -> float:
        """The ratio of a stage that has no length and one budget, as those of `schedules`."""
        assert isinstance(self.ratio, float)
        return self.ratio

    @property
    def budgets(self) -> tuple[int, ...] | tuple[float, ...]:
        """Lengths or ratios, at least one of them."""
        found = self.ratio if self.length is None else self.length
        assert found is not None  # schedule_problems
        return found if isinstance(found, tuple) else (found,)


def pooling_stage(values: PoolingStage | dict[str, Any]) -> PoolingStage:
    """The stage with these fields; ValueError where one is unknown or after_layer is missing."""
    if isinstance(values, PoolingStage):
        return values
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    known = {entry.name for entry in fields(PoolingStage)}
    if "after_layer" not in values or not set(values) <= known:
        raise ValueError(f"pooling: stage {values} needs after_layer and may have {', '.join(sorted(known))}")
    return PoolingStage(**values)


def pooler_problems(
    pooling_base: float, scorer_init_std: float | None, exploration_noise: float
) -> Iterator[tuple[str, str]]:
    """(key, message) of every bad value among the poolers' settings, which all kinds of model share."""
    if not 1 < pooling_base <= HIGHEST_BASE:
        yield "pooling_base", f"is {pooling_base}; must be above 1, and at most {HIGHEST_BASE:g}"
    if scorer_init_std is not None and not 0 <= scorer_init_std < math.inf:
        yield "scorer_init_std", f"is {scorer_init_std}; must be finite and not negative"
    if not 0 <= exploration_noise < math.inf:
        yield "exploration_noise", f"is {exploration_noise}; must be finite and not negative (0 = none)"


def schedules(pooling: Sequence[PoolingStage]) -> list[tuple[PoolingStage, ...]]:
    """The schedule at each of its budgets, from the largest to the smallest; stages with one budget are in all."""
    number = max((len(stage.budgets) for stage in pooling), default=1)
    found = [tuple(_at(stage, stage.budgets[i % len(stage.budgets)]) for stage in pooling) for i in range(number)]
    return sorted(found, key=lambda schedule: [stage.budgets for stage in schedule], reverse=True)


def schedule_that_keeps(pooling: Sequence[PoolingStage], keep: float | None) -> tuple[PoolingStage, ...]:
    """The schedule whose last stage keeps `keep` tokens, or below 1 this share of its tokens; None: the largest budget.

    What is not among the budgets changes the last stage alone. Raises ValueError where that cannot be.
    """
    options = schedules(pooling)
    if keep is None:
        return options[0]
    if not pooling:
        raise ValueError(f"keep {keep}: this model pools nothing")
    if math.isfinite(keep) and keep == round(keep):
        keep = int(keep)
    for schedule in options:
        if schedule[-1].budgets == (keep,):
            return schedule
    changed = (*options[0][:-1], _at(pooling[-1], keep))
    problems = [message for _, message in schedule_problems(changed, first=0, last=pooling[-1].after_layer)]
    if problems:
        known = ", ".join(str(schedule[-1].budgets[0]) for schedule in options)
        raise ValueError(f"keep {problems[0]}; trained with {known}")
    return changed


def _at(stage: PoolingStage, budget: float) -> PoolingStage:
    if stage.budgets == (budget,):
        return stage
    if isinstance(budget, int):
        return replace(stage, length=budget, ratio=None)
    return replace(stage, length=None, ratio=budget)


def schedule_problems(pooling: Sequence[PoolingStage], *, first: int, last: int) -> Iterator[tuple[str, str]]:
    """(key, message) of every bad stage of a schedule over the layers `first` to `last`."""
    numbers: set[int] = set()
    for index, stage in enumerate(pooling):
        key = f"pooling[{index}]"
        if not first <= stage.after_layer <= last:
            yield f"{key}.after_layer", f"is {stage.after_layer}; must lie in {first}..{last}"
        if index and stage.after_layer <= pooling[index - 1].after_layer:
            yield f"{key}.after_layer", f"is {stage.after_layer}; must be above the stage before it"
        if stage.operator not in OPERATOR_NAMES:
            yield f"{key}.operator", f"is {stage.operator!r}; choose one of {', '.join(OPERATOR_NAMES)}"
        if (stage.length is None) == (stage.ratio is None):
            yield key, "needs exactly one of length and ratio"
            return
        if stage.span < 1:
            yield f"{key}.span", f"is {stage.span}; must be at least 1"
            return
        if stage.span > 1 and stage.operator not in SPAN_OPERATORS:
            able = ", ".join(SPAN_OPERATORS)
            yield f"{key}.span", f"is {stage.span}, but {stage.operator} keeps no tokens; use 1, or one of {able}"
        yield from _budget_problems(key, stage)
        numbers.add(len(stage.budgets))
    if len(numbers - {1}) > 1 or 0 in numbers:
        counts = ", ".join(map(str, sorted(numbers)))
        yield "pooling", f"has stages with {counts} budgets; those with several must have equally many"
        return
    for schedule in schedules(pooling):
        for index, (before, stage) in enumerate(pairwise(schedule), 1):
            if isinstance(before.length, int) and isinstance(stage.length, int) and stage.length >= before.length:
                message = f"is {stage.length}; must be below the stage before it ({before.length})"
                yield f"pooling[{index}].length", message


def _budget_problems(key: str, stage: PoolingStage) -> Iterator[tuple[str, str]]:
    for value in stage.budgets:
        if stage.length is not None and value < 1:
            yield f"{key}.length", f"is {value}; must be at least 1"
        if stage.length is not None and value % stage.span:
            yield f"{key}.length", f"is {value}; must be a multiple of span = {stage.span}"
        if stage.ratio is not None and not (0 < value < 1 and math.frexp(value)[0] == 0.5):
            yield f"{key}.ratio", f"is {value}; must be 1/2, 1/4, 1/8, ..."
    if len(set(stage.budgets)) < len(stage.budgets):
        yield key, f"names a budget twice: {', '.join(map(str, stage.budgets))}"

"""What of a model is trained, in which steps and how: stages of a run (`train.stages`), LoRA."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transpooler.common import at_least, between, positive
from transpooler.trainer.config.optimizer import GroupConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A part of a run that begins with a fresh optimizer and a schedule of its own; null takes what the run has."""

    steps: int | None = at_least(1, None)
    """Optimizer steps; only the last stage may leave them out, and then lasts to train.steps."""
    freeze: tuple[str, ...] | None = None
    """In place of train.freeze."""
    learning_rate: float | None = positive(None)
    """Peak learning rate, in place of optimizer.learning_rate."""
    warmup_steps: int | None = at_least(0, None)
    """In place of optimizer.warmup_steps."""
    groups: tuple[GroupConfig, ...] | None = None
    """In place of optimizer.groups."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021): a linear map's weight is frozen, and a product of two factors that is added
    to it is trained, alpha / rank · B A with A of `rank` rows."""

    rank: int = at_least(1, 8)
    alpha: int = at_least(1, 16)
    """alpha / rank scales the update."""
    targets: tuple[str, ...] = ()
    """Patterns of names of linear maps, such as 'reader.*.q_proj'; * stands for anything, dots included."""
    dropout: float = between(0, 1, 0.0, exclude=(1,))
    """Of what A reads."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """LoRA needs something to adapt."""
        if not self.targets:
            yield "targets", "is empty; give patterns of linear maps' names, such as 'reader.*.q_proj'"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage as it is trained; a run without `train.stages` is one."""

    number: int
    """From 0 on."""
    first: int
    """Its first step, 0-based."""
    last: int
    """The step after its last one: how many steps the run has taken at its end."""
    freeze: tuple[str, ...]
    optimizer: OptimizerConfig
    key: str
    """What its settings stand under, for messages."""

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return self.last - self.first


def length_problems(stages: Sequence[StageConfig], steps: int) -> Iterator[tuple[str, str]]:
    """Where the stages' steps do not make up the run's."""
    for number, stage in enumerate(stages[:-1]):
        if stage.steps is None:
            yield f"stages[{number}].steps", "is null; only the last stage may leave it out"
            return
    total = sum(stage.steps or 0 for stage in stages)
    if stages and stages[-1].steps is None:
        if total >= steps:
            yield "steps", f"is {steps}, but the stages before the last one take {total}; use more than that"
    elif stages and total != steps:
        yield "steps", f"is {steps}, but the steps of train.stages add up to {total}; use {total}"


def plan_stages(
    stages: Sequence[StageConfig], steps: int, freeze: tuple[str, ...], optimizer: OptimizerConfig
) -> tuple[Stage, ...]:
    """The stages of a run of `steps` steps, with what they leave out filled in. They need no `length_problems`."""
    if not stages:
        return (Stage(number=0, first=0, last=steps, freeze=freeze, optimizer=optimizer, key="train"),)
    plan: list[Stage] = []
    for number, stage in enumerate(stages):
        first = plan[-1].last if plan else 0
        given = {name: getattr(stage, name) for name in ("learning_rate", "warmup_steps", "groups")}
        own = replace(optimizer, **{name: value for name, value in given.items() if value is not None})
        plan.append(
            Stage(
                number=number,
                first=first,
                last=steps if stage.steps is None else first + stage.steps,
                freeze=freeze if stage.freeze is None else stage.freeze,
                optimizer=own,
                key=f"train.stages[{number}]",
            )
        )
    return tuple(plan)


def stage_of(plan: Sequence[Stage], step: int) -> Stage:
    """The stage of the 0-based step; beyond the run's end, the last one."""
    return next((stage for stage in plan if step < stage.last), plan[-1])

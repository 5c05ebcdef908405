"""The paper's headline beside what was measured (arXiv 2009.05169; 8,192 tokens in)."""

from collections.abc import Sequence
from dataclasses import dataclass

from transpooler.benchmarks.speed.table import Row

LENGTH = 8192


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One claim: a ratio of two architectures' costs at 8,192 tokens."""

    what: str
    cost: str
    paper: float
    aim: float
    baseline: str = "deep_blockwise"
    architecture: str = "deep_pyramidion"


GOALS = (
    Goal(what="training step", cost="train_step_s", paper=1.8, aim=2.5),
    Goal(what="training step, operations", cost="train_gflop", paper=1.8, aim=2.5),
    Goal(what="inference, a document", cost="document_s", paper=4.5, aim=6.0),
    Goal(what="decoder's attention, operations", cost="decoder_attention_gflop", paper=13.0, aim=16.0),
    Goal(
        what="training step, 24 layers of pyramid against 2 of vanilla",
        cost="train_step_s",
        paper=1.0,
        aim=1.0,
        baseline="vanilla",
        architecture="pyramid24",
    ),
)


def judge_goals(rows: Sequence[Row]) -> list[str]:
    """Write one line for each goal whose two cells were measured."""
    at = {row["architecture"]: row for row in rows if row["length"] == LENGTH}
    lines = []
    for goal in GOALS:
        ours, other = (at.get(name, {}).get(goal.cost) for name in (goal.architecture, goal.baseline))
        if ours and other:
            ratio = other / ours
            word = "aim reached" if ratio >= goal.aim else "paper's number reached" if ratio >= goal.paper else "missed"
            lines.append(
                f"{goal.what} at {LENGTH:,} tokens: {goal.architecture} is {ratio:.2f}x cheaper than {goal.baseline} "
                f"(paper {goal.paper:g}x, aim {goal.aim:g}x): {word}"
            )
    return lines

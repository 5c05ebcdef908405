"""What the poolers did over training: where in documents they kept tokens, and how sharply they chose."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from transpooler.common import percent
from transpooler.trainer.report.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Series, shorten, ticks
from transpooler.trainer.report.documents import NUM_TENTHS
from transpooler.trainer.report.runs import ReportedRun

ROW_HEIGHT = 14
MAX_COLUMNS = 60


def num_poolers(run: ReportedRun) -> int:
    """Pooling stages that the run's metrics speak of."""
    count = 0
    while run.curve("train", f"pool{count}_share_tenth0"):
        count += 1
    return count


def sharpness(runs: Sequence[ReportedRun]) -> list[Series]:
    """Mean top weight of every stage that scores, of every run: 1 = each slot holds one token as it was."""
    return [
        Series(name=f"{run.name} {stage_name(run, stage)}", points=points, colour=colour, dashed=stage > 0)
        for colour, run in enumerate(runs)
        for stage in range(num_poolers(run))
        if (points := run.curve("train", f"pool{stage}_mean_top_weight"))  # operators without scores record none
    ]


def stage_name(run: ReportedRun, stage: int) -> str:
    """Such as "after layer 2"."""
    stages = run.config.model.pooling
    return f"after layer {stages[stage].after_layer}" if stage < len(stages) else f"stage {stage + 1}"


def explain_absence(runs: Sequence[ReportedRun], documents: Sequence[dict[str, Any]] | None = None) -> list[str]:
    """A line for each run that the strips (or, if given, these documents) do not show: why."""
    shown = {arm["run"] for view in documents or () for arm in view["arms"]}
    lines = []
    for run in runs:
        if run.name in shown:
            continue
        if not run.config.model.pooling:
            lines.append(f"{run.name} does not pool: its decoder attends to every token.")
        elif documents is not None:
            lines.append(f"{run.name} has no marked documents; transpooler evaluate makes them.")
        elif not num_poolers(run):
            lines.append(f"{run.name} has pooled no document so far, by its metrics.")
    return lines


def strips(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Per run and stage, a picture of the share of kept tokens in each tenth of the documents over training."""
    views = []
    for run in runs:
        for stage in range(num_poolers(run)):
            tenths = [run.curve("train", f"pool{stage}_share_tenth{tenth}") for tenth in range(NUM_TENTHS)]
            name = f"{run.name}, {stage_name(run, stage)}"
            views.append({"name": name, "svg": Markup(strip(tenths, name))})
    return views


def strip(tenths: Sequence[Sequence[tuple[float, float]]], label: str) -> str:
    """An SVG: steps to the right, the document from top to bottom; the darker, the larger the share of kept tokens.

    Full colour means three times an even share, so that even shares look alike however long the training is.
    """
    steps = [step for step, _ in tenths[0]]
    x_ticks = ticks(steps[0] if len(steps) > 1 else 0, steps[-1], whole=True)
    height = TOP + NUM_TENTHS * ROW_HEIGHT + BOTTOM

    def place(step: float) -> float:
        return LEFT + (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}: share of kept tokens per tenth of the document over optimizer steps">'
    ]
    for first, last in _columns(len(steps)):
        left = place(steps[first - 1]) if first else place(x_ticks[0])
        width = max(0.5, place(steps[last - 1]) - left)
        for tenth, curve in enumerate(tenths):
            share = math.fsum(value for _, value in curve[first:last]) / (last - first)
            top = TOP + tenth * ROW_HEIGHT
            title = f"steps to {shorten(steps[last - 1])}, tenth {tenth + 1}: {percent(share)} %"
            parts.append(
                f'<rect class="heat" x="{left:.1f}" y="{top}" width="{width + 0.3:.1f}" height="{ROW_HEIGHT}" '
                f'style="--share:{min(1.0, share * NUM_TENTHS / 3):.2f}"><title>{title}</title></rect>'
            )
    for tenth, name in ((0, "start"), (NUM_TENTHS - 1, "end")):
        y = TOP + tenth * ROW_HEIGHT + 11
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y}" text-anchor="end">{name}</text>')
    for tick in x_ticks:
        anchor = "end" if tick == x_ticks[-1] else "middle"
        x = place(tick)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{shorten(tick)}</text>')
    return "".join([*parts, "</svg>"])


def _columns(count: int) -> list[tuple[int, int]]:
    """Runs [first, last) of neighbouring lines of metrics, at most MAX_COLUMNS."""
    number = min(count, MAX_COLUMNS)
    return [(count * column // number, count * (column + 1) // number) for column in range(number)]

"""Learning curves and intervals of a study, and what its arms reach over what they keep, as pictures."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from transpooler.benchmarks.harness import save_figure

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's, told apart with any kind of colour vision."""
MARKERS = "os^Dv*XP"


SCORES = {"facts": "Facts recalled, %", "rouge1": "ROUGE-1 F1, %"}
FEWEST_BUDGETS = 3
"""Of a family of arms, for a line over what is kept."""


def write_plot(rows: Sequence[dict[str, Any]], points: Sequence[dict[str, Any]], path: Path, title: str) -> Path:
    """Held-out loss against tokens and minutes; loss and, where there is one, a score at the end, with intervals."""
    score = _find_score(rows)
    count = 3 if score is None else 4
    figure, axes = _pyplot().subplots(1, count, figsize=(4.75 * count, 5), layout="constrained")
    arms = [row["arm"] for row in rows]
    for axis, (key, label) in zip(
        axes, (("source_tokens", "source tokens read"), ("minutes", "minutes")), strict=False
    ):
        for number, arm in enumerate(arms):
            _curve(axis, [point for point in points if point["arm"] == arm], key, number)
        axis.set_xlabel(label)
        axis.set_title("Held-out loss while training", loc="left", fontsize=11)
    axes[0].legend(fontsize=8, frameon=False)
    _intervals(axes[2], rows, "loss", "Loss per token, evaluated split")
    if score is not None:
        dialect = f" ({rows[0]['rouge_dialect']})" if score == "rouge1" else ""
        _intervals(axes[3], rows, score, SCORES[score] + dialect)
    return _finish(figure, path, title)


def write_budget_plot(rows: Sequence[dict[str, Any]], path: Path, title: str) -> list[Path]:
    """The score over the tokens that are kept, one line for arms that differ in that alone (NAME_4x, NAME_8x, ...).

    Returns the path, or nothing where no family has FEWEST_BUDGETS.
    """
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(re.sub(r"_\d+x$", "", row["arm"]), []).append(row)
    families = {name: found for name, found in families.items() if len(found) >= FEWEST_BUDGETS}
    score = _find_score(rows)
    if not families or score is None:
        return []
    figure, axis = _pyplot().subplots(figsize=(7, 5), layout="constrained")
    for number, (name, found) in enumerate(families.items()):
        found.sort(key=lambda row: row["kept_tokens"])
        means, lows, highs = ([row[f"{score}{suffix}"] for row in found] for suffix in ("", "_low", "_high"))
        around = [
            [mean - low for mean, low in zip(means, lows, strict=True)],
            [high - mean for mean, high in zip(means, highs, strict=True)],
        ]
        style: Any = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        axis.errorbar([row["kept_tokens"] for row in found], means, yerr=around, capsize=3, label=name, **style)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("tokens kept of a document, on average")
    axis.set_title(SCORES[score], loc="left", fontsize=11)
    axis.legend(fontsize=8, frameon=False)
    return [_finish(figure, path, title)]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _finish(figure: Any, path: Path, title: str) -> Path:
    """Write a figure with what all have in common, and free it."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    save_figure(figure, path)
    _pyplot().close(figure)
    return path


def _find_score(rows: Sequence[dict[str, Any]]) -> str | None:
    return next((column for column in SCORES if column in rows[0]), None)


def _curve(axis: Any, points: Sequence[dict[str, Any]], key: str, number: int) -> None:
    """Median over the seeds, and the range that they cover."""
    by_step = {step: [point for point in points if point["step"] == step] for step in {p["step"] for p in points}}
    steps = sorted(by_step)
    x = [median(point[key] for point in by_step[step]) for step in steps]
    losses = [[point["loss"] for point in by_step[step]] for step in steps]
    style = {"color": COLOURS[number % len(COLOURS)]}
    axis.plot(
        x,
        [median(values) for values in losses],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        linewidth=1.3,
        linestyle="-" if number < len(COLOURS) else "--",
        label=points[0]["arm"] if points else None,
        **style,
    )
    axis.fill_between(x, [min(values) for values in losses], [max(values) for values in losses], alpha=0.12, **style)


def _intervals(axis: Any, rows: Sequence[dict[str, Any]], column: str, title: str) -> None:
    for number, row in enumerate(rows):
        mean, low, high = (row[f"{column}{suffix}"] for suffix in ("", "_low", "_high"))
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        axis.errorbar(mean, number, xerr=[[mean - low], [high - mean]], capsize=3, **style)
    axis.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontsize=11)

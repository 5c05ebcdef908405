"""Cost against length, log-log, with the exponent p of cost ~ length^p fitted to each line."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression
from typing import Any

from transpooler.benchmarks.harness import save_figure
from transpooler.benchmarks.speed.architectures import BASELINES, ENTRIES
from transpooler.benchmarks.speed.table import Row

PANELS = {
    "train_step_s": "Training step (s)",
    "train_peak_mib": "Peak memory of a step (MiB)",
    "encoder_s": "Encoder, a document (s)",
    "token_s": "Decoder, a token (s)",
    "document_s": "Beam search, a document (s)",
    "decoder_gflop": "Decoder, a document (GFLOP)",
}
# Okabe and Ito's colours, told apart by people with any kind of colour vision; markers tell them apart in print.
STYLES = (
    ("#000000", "o"),
    ("#D55E00", "s"),
    ("#0072B2", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
)


def fit_exponent(lengths: Sequence[float], costs: Sequence[float]) -> float | None:
    """Fit the least-squares slope of log cost over log length; None for fewer than two lengths."""
    if len(set(lengths)) < 2:
        return None
    return linear_regression([math.log(value) for value in lengths], [math.log(value) for value in costs]).slope


def format_range(lengths: Sequence[int]) -> str:
    """Format the lengths that an exponent was fitted to: '2k-8k', or '2k and 8k alone' if there are only two."""
    low, high = format_length(min(lengths)), format_length(max(lengths))
    return f"{low}-{high}" if len(set(lengths)) > 2 else f"{low} and {high} alone"


def format_length(length: int) -> str:
    """Format 8,192 as '8k'."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def write_plots(rows: Sequence[Row], folder: Path, subtitle: str) -> list[Path]:
    """Draw cost-<group>.png for each group with measurements; returns their paths."""
    paths = []
    for group in BASELINES:
        members = [row for row in rows if row["group"] == group and any(row.get(cost) for cost in PANELS)]
        if members:
            paths.append(_figure(group, members, folder / f"cost-{group}.png", subtitle))
    return paths


def _figure(group: str, rows: Sequence[Row], path: Path, subtitle: str) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 9), layout="constrained")
    for axis, (cost, title) in zip(axes.flat, PANELS.items(), strict=True):
        draw_panel(axis, rows, cost)
        axis.set_title(title, loc="left", fontsize=11)
    layers = " + ".join(map(str, ENTRIES[BASELINES[group][0]].layers))
    figure.suptitle(f"Cost against input length, {layers} layers", fontsize=14, x=0.01, ha="left")
    figure.supxlabel(f"input tokens. {subtitle}", fontsize=9)
    save_figure(figure, path)
    pyplot.close(figure)
    return path


def draw_panel(axis: Any, rows: Sequence[Row], cost: str) -> None:
    """Draw one cost of all architectures against length, and label the axes."""
    names = [name for name in ENTRIES if any(row["architecture"] == name for row in rows)]
    for name, (colour, marker) in zip(names, STYLES, strict=False):
        points = sorted((row["length"], row[cost]) for row in rows if row["architecture"] == name and row.get(cost))
        if not points:
            continue
        lengths, costs = zip(*points, strict=True)
        slope = fit_exponent(lengths, costs)
        label = name if slope is None else f"{name}  n^{slope:.2f} ({format_range(lengths)})"
        axis.plot(lengths, costs, color=colour, marker=marker, markersize=5, linewidth=1.5, label=label)
    ticks = sorted({row["length"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, map(format_length, ticks))
    axis.set_yscale("log")
    _label_costs(axis)
    axis.minorticks_off()
    axis.grid(True, which="major", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_lines():
        axis.legend(fontsize=8, frameon=False)


def _label_costs(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten; where fewer than three of them are in view, at even steps."""
    from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator

    low, high = axis.get_ylim()
    locator: Locator = LogLocator(subs=(1, 2, 5), numticks=20)
    if sum(low <= tick <= high for tick in locator.tick_values(low, high)) < 3:
        locator = MaxNLocator(5)
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))

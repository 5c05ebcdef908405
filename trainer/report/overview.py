"""Numbers of runs: the few on top, a row per run where there are several, scores beside baselines, curves."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from markupsafe import Markup

from transpooler.common import percent
from transpooler.trainer.evaluation.rouge import dialect_of
from transpooler.trainer.report.charts import Series, find_coinciding, line_chart, value_rows
from transpooler.trainer.report.poolers import sharpness
from transpooler.trainer.report.runs import Evaluation, ReportedRun

CHARTS = (
    ("loss", "Loss per target token", "nats"),
    ("source_tokens_per_s", "Throughput", "source tokens/s"),
    ("rouge1", "ROUGE-1", "F1, held-out"),
    ("peak_memory_mib", "Peak memory", "MiB, rank 0"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("learning_rate", "Learning rate", ""),
)
BUDGET_CURVES: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None]], ...] = (
    ("Loss", "nats per target token", lambda metrics: metrics["loss"]),
    ("ROUGE-1", "F1", lambda metrics: metrics["rouge"]["rouge1"]["mean"]),
    (
        "Evidence recall",
        "share of a reference's words",
        lambda metrics: (metrics.get("evidence_recall") or {}).get("mean"),
    ),
    ("Time", "seconds a document", lambda metrics: metrics["seconds_per_document"]),
)
FROM_ZERO = ("source_tokens_per_s", "peak_memory_mib", "rouge1")
ROUGE_COLUMNS = (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L"), ("rougeLsum", "ROUGE-Lsum"))


def headline(run: ReportedRun) -> list[dict[str, str]]:
    """The few numbers that stand on top of the report of one run."""
    numbers = _scores_in_short(run, run.trained[0]) if run.trained else []
    numbers += [
        {"value": f"{value:{form}}", "name": name, "note": note}
        for name, form, note, value in (
            ("validation loss", ".3f", f"step {last_step(run, 'validation'):,.0f}", last(run, "validation", "loss")),
            ("source tokens/s", ",.0f", "median over training", median_value(run, "source_tokens_per_s")),
            ("peak memory, MiB", ",.0f", "rank 0", last(run, "train", "peak_memory_mib")),
        )
        if value is not None
    ]
    return numbers


def _scores_in_short(run: ReportedRun, trained: Evaluation) -> list[dict[str, str]]:
    metrics = trained.metrics
    untrained = next((item.metrics for item in run.evaluations if not item.metrics["trained"]), None)
    beside = [f"lead-{metrics['lead_words']} {percent(metrics['lead_rouge']['rouge1']['mean'])}"]
    losses = []
    if untrained is not None:
        beside.append(f"untrained {percent(untrained['rouge']['rouge1']['mean'])}")
        losses.append(f"untrained {untrained['loss']:.3f}")
    if metrics.get("shuffled_loss") is not None:
        losses.append(f"wrong summaries {metrics['shuffled_loss']:.3f}")
    documents = f"{metrics['num_documents']:,} {metrics['split']} documents"
    return [
        {
            "value": percent(metrics["rouge"]["rouge1"]["mean"]),
            "name": f"ROUGE-1 ({dialect_of(metrics)})",
            "note": ", ".join(beside),
        },
        {"value": f"{metrics['loss']:.3f}", "name": f"loss, {documents}", "note": ", ".join(losses)},
    ]


def overview(runs: Sequence[ReportedRun]) -> list[dict[str, str]]:
    """One row of numbers per run; "–" where a run has none."""
    rows = []
    for run in runs:
        metrics = run.trained[0].metrics if run.trained else None
        rows.append(
            {
                "name": run.name,
                "documents": f"{metrics['num_documents']:,} {metrics['split']}" if metrics else "–",
                "rouge1": percent(metrics["rouge"]["rouge1"]["mean"]) if metrics else "–",
                "dialect": dialect_of(metrics) if metrics else "",
                "loss": _number(metrics["loss"] if metrics else None, ".3f"),
                "validation_loss": _number(last(run, "validation", "loss"), ".3f"),
                "speed": _number(median_value(run, "source_tokens_per_s"), ",.0f"),
                "memory": _number(last(run, "train", "peak_memory_mib"), ",.0f"),
                "steps": _number(last_step(run, "train") or None, ",.0f"),
            }
        )
    return rows


def name_dialects(results: Iterable[Iterable[dict[str, Any]]]) -> list[str]:
    """The dialects of ROUGE in these evaluations, each once."""
    return sorted({dialect_of(metrics) for several in results for metrics in several if _has_rouge(metrics)})


def _has_rouge(metrics: dict[str, Any]) -> bool:
    """Whether it is an evaluation of summaries, on its own or in the loop."""
    return "rouge" in metrics or "rouge1" in metrics


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def last(run: ReportedRun, split: str, key: str) -> float | None:
    """The newest value of a metric."""
    curve = run.curve(split, key)
    return curve[-1][1] if curve else None


def last_step(run: ReportedRun, split: str) -> float:
    """The step of the newest loss; 0 before the first."""
    curve = run.curve(split, "loss")
    return curve[-1][0] if curve else 0


def median_value(run: ReportedRun, key: str) -> float | None:
    """Median over training."""
    values = [value for _, value in run.curve("train", key)]
    return median(values) if values else None


def charts(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """One chart per metric that any run has, all runs in it."""
    drawn = []
    for key, title, unit in CHARTS:
        if key == "rouge1":
            unit = f"{unit}, {', '.join(name_dialects(run.metrics for run in runs))}"
        train = [Series(name=run.name, points=run.curve("train", key), colour=n) for n, run in enumerate(runs)]
        held_out = [Series(name=run.name, points=run.curve("validation", key), colour=n) for n, run in enumerate(runs)]
        if any(line.points for line in train) and any(line.points for line in held_out):
            unit = f"{unit}; dashed: held-out"
            held_out = [replace(line, name=f"{line.name} held-out", dashed=True) for line in held_out]
        both = [line for pair in zip(train, held_out, strict=True) for line in pair]
        drawn += chart(both, title, unit, from_zero=key in FROM_ZERO)
    return drawn + chart(sharpness(runs), "Sharpness of the poolers", "mean top weight of a slot; 1 = one token")


def budget_curves(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """What `transpooler evaluate --keep` found: charts over the tokens that are kept."""
    drawn = []
    dialects = ", ".join(name_dialects([item.metrics for item in run.budgets] for run in runs))
    for title, unit, read in BUDGET_CURVES:
        lines = [
            Series(name=f"{run.name} {split}", points=points, colour=number, dashed=split != "test")
            for number, run in enumerate(runs)
            for split in sorted({item.metrics["split"] for item in run.budgets})
            if (points := _points([item.metrics for item in run.budgets if item.metrics["split"] == split], read))
        ]
        drawn += chart(lines, title, f"{unit}, {dialects}" if title == "ROUGE-1" else unit, over="kept token")
    return drawn


def _points(
    evaluations: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], float | None]
) -> list[tuple[float, float]]:
    values = [(metrics["kept_tokens"], read(metrics)) for metrics in evaluations]
    return [(kept, value) for kept, value in values if value is not None]


def chart(
    series: Sequence[Series], title: str, unit: str, *, from_zero: bool = False, over: str = "step"
) -> list[dict[str, Any]]:
    """The chart of these lines, if there is anything to draw."""
    series = [line for line in series if line.points]
    svg = line_chart(series, f"{title} over {over}s", from_zero=from_zero)
    if not svg:
        return []
    same = "; ".join(f"{', '.join(names[:-1])} and {names[-1]} coincide" for names in find_coinciding(series))
    found = {"title": title, "unit": unit, "over": over, "svg": Markup(svg), "same": same}
    return [found | {"series": series, "rows": value_rows(series)}]


def score_rows(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Rows of the ROUGE table, by split: the models of all runs, then lead-n, once where runs agree on it."""
    rows: list[dict[str, Any]] = []
    items = [(run, item.metrics) for run in runs for item in run.evaluations]
    for split in dict.fromkeys(metrics["split"] for _, metrics in items):
        of_split = [(run, metrics) for run, metrics in items if metrics["split"] == split]
        for trained in (True, False):
            rows += [_model_row(run, metrics) for run, metrics in of_split if metrics["trained"] is trained]
        leads: list[dict[str, Any]] = []
        for _, metrics in of_split:
            row = _row(f"lead-{metrics['lead_words']}", metrics, "lead")
            if row not in leads:
                leads.append(row)
        rows += leads
    return rows


def _model_row(run: ReportedRun, metrics: dict[str, Any]) -> dict[str, Any]:
    shuffled = metrics.get("shuffled_loss")
    name = run.name if metrics["trained"] else f"{run.name}, untrained"
    row = _row(name, metrics, "generated")
    return row | {"main": metrics["trained"], "loss": f"{metrics['loss']:.3f}", "shuffled": _number(shuffled, ".3f")}


def _row(name: str, metrics: dict[str, Any], text: str) -> dict[str, Any]:
    scores = metrics["rouge" if text == "generated" else "lead_rouge"]
    own = metrics.get("metrics" if text == "generated" else "lead_metrics", {})
    return {
        "name": name,
        "split": f"{metrics['num_documents']:,} {metrics['split']}",
        "dialect": dialect_of(metrics),
        "main": False,
        "cells": [_cell(scores[key]) for key, _ in ROUGE_COLUMNS],
        "own": {name: _own_cell(value) for name, value in own.items()},
        "words": round(metrics["mean_words"][text]),
        "loss": "–",
        "shuffled": "–",
    }


def own_metrics(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the users' own metrics in the rows of the table, each once."""
    return list(dict.fromkeys(name for row in rows for name in row["own"]))


def _own_cell(interval: dict[str, float]) -> dict[str, str]:
    return {"mean": f"{interval['mean']:.4g}", "interval": f"{interval['low']:.4g} to {interval['high']:.4g}"}


def _cell(interval: dict[str, float]) -> dict[str, str]:
    return {"mean": percent(interval["mean"]), "interval": f"{percent(interval['low'])}–{percent(interval['high'])}"}

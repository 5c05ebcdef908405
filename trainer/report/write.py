"""Gathers what runs left behind and fills the template. The file needs nothing else to be read."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.resources import files
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from common.files import atomic_write
from common.progress import say
from trainer.report.charts import Series, line_chart, short
from trainer.report.documents import LEVELS, document_view, percent
from trainer.report.poolers import sharpness, strips
from trainer.report.runs import Evaluation, Run, read_run, run_names
from trainer.report.samples import samples

CHARTS = (
    ("loss", "Loss per target token", "nats; dashed: held-out"),
    ("source_tokens_per_s", "Throughput", "source tokens/s"),
    ("rouge1", "ROUGE-1", "F1, held-out"),
    ("peak_memory_mib", "Peak memory", "MiB, rank 0"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("learning_rate", "Learning rate", ""),
)
ROUGE_COLUMNS = (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L"), ("rougeLsum", "ROUGE-Lsum"))


def write_report(runs: list[Path], output: Path) -> None:
    """Write one self-contained HTML file about the run folders; UserError if one is no run folder or is broken."""
    read = [read_run(folder, name) for folder, name in zip(runs, run_names(runs), strict=True)]
    shown = documents(read)
    _write_page(
        output,
        max((len(view["stages"]) for view in shown), default=0),
        title=" · ".join(run.name for run in read),
        documents=shown,
        runs=read,
        headline=headline(read),
        charts=charts(read),
        strips=strips(read),
        samples=samples(read),
        scores=[score for run in read for score in score_rows(run, len(read) > 1)],
        preparations=preparations(read),
        settings=settings(read),
    )


def write_documents(highlighted: Iterable[dict[str, Any]], output: Path, num_documents: int) -> None:
    """Write one such file about documents alone: `highlighted` are results of `highlight` with name and generated.

    They are taken and written one by one: memory does not grow with their number.
    """
    views = (document_view(entry, {"generated": entry["generated"]}, entry["name"]) for entry in highlighted)
    first = next(views)
    title = first["name"] if num_documents == 1 else f"{num_documents:,} documents"
    _write_page(output, len(first["stages"]), title=title, documents=chain([first], views))


def _write_page(output: Path, num_stages: int, **parts: Any) -> None:
    """Fill the template; a part that is not given is left out of the page."""
    from jinja2 import Environment, StrictUndefined

    package = files("trainer.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    for name in ("charts", "strips"):
        parts[name] = [{**part, "svg": Markup(part["svg"])} for part in parts.get(name, ())]
    page = environment.from_string(package.joinpath("template.html").read_text(encoding="utf-8")).generate(
        dict.fromkeys(("runs", "headline", "samples", "scores", "preparations"), ())
        | {"settings": {"differing": [], "whole": []}}
        | parts,
        css=Markup(package.joinpath("report.css").read_text(encoding="utf-8") + shade_rules(num_stages)),
        js=Markup(package.joinpath("report.js").read_text(encoding="utf-8")),
        rouge_columns=[label for _, label in ROUGE_COLUMNS],
        levels=range(1, LEVELS + 1),
    )
    with atomic_write(output) as file:
        file.writelines(page)
    say(f"report: {output}")


def shade_rules(num_stages: int) -> str:
    """CSS: a document that shows stage i shows that stage's tenths, and gives class s<i>-<level> its background."""
    rules = [f'[data-stage="{stage}"] > [data-for="{stage}"]{{display:grid}}' for stage in range(num_stages)]
    for level in range(1, LEVELS + 1):
        names = ",".join(f'[data-stage="{stage}"] .s{stage}-{level}' for stage in range(num_stages))
        names = f"{names},.shade-{level}" if names else f".shade-{level}"
        share = round(6 + 94 * level / LEVELS)
        ink = "color:var(--on-mark);" if level > LEVELS * 0.6 else ""
        rules.append(f"{names}{{background:color-mix(in srgb,var(--mark) {share}%,transparent);{ink}}}")
    return "\n".join(rules)


def headline(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The few numbers that stand on top, of the last run that has them."""
    numbers = []
    for run in reversed(runs):
        trained = next((item for item in run.evaluations if item.metrics["trained"]), None)
        if trained is not None:
            numbers += _scores_in_short(run, trained)
            break
    run = runs[-1]
    losses = run.curve("validation", "loss")
    if losses:
        numbers.append({"value": f"{losses[-1][1]:.3f}", "name": "validation loss", "note": f"step {losses[-1][0]:,}"})
    speeds = [value for _, value in run.curve("train", "source_tokens_per_s")]
    if speeds:
        numbers.append({"value": f"{median(speeds):,.0f}", "name": "source tokens/s", "note": "median over training"})
    return numbers


def _scores_in_short(run: Run, trained: Evaluation) -> list[dict[str, str]]:
    metrics = trained.metrics
    untrained = next((item.metrics for item in run.evaluations if not item.metrics["trained"]), None)
    beside = [f"lead-{metrics['lead_words']} {100 * metrics['lead_rouge']['rouge1']['mean']:.1f}"]
    losses = []
    if untrained is not None:
        beside.append(f"untrained {100 * untrained['rouge']['rouge1']['mean']:.1f}")
        losses.append(f"untrained {untrained['loss']:.3f}")
    if metrics.get("shuffled_loss") is not None:
        losses.append(f"wrong summaries {metrics['shuffled_loss']:.3f}")
    documents = f"{metrics['num_documents']:,} {metrics['split']} documents"
    return [
        {"value": f"{100 * metrics['rouge']['rouge1']['mean']:.1f}", "name": "ROUGE-1", "note": ", ".join(beside)},
        {"value": f"{metrics['loss']:.3f}", "name": f"loss, {documents}", "note": ", ".join(losses)},
    ]


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One chart per metric that any run has, all runs in it."""
    drawn = []
    for key, title, unit in CHARTS:
        series = []
        for colour, run in enumerate(runs):
            series.append(Series(name=f"{run.name} train", points=run.curve("train", key), colour=colour))
            held_out = run.curve("validation", key)
            series.append(Series(name=f"{run.name} held-out", points=held_out, colour=colour, dashed=True))
        drawn += chart(series, title, unit)
    return drawn + chart(sharpness(runs), "Sharpness of the poolers", "mean top weight of a slot; 1 = one token")


def chart(series: Sequence[Series], title: str, unit: str) -> list[dict[str, Any]]:
    """The chart of these lines, if there is anything to draw."""
    series = [line for line in series if line.points]
    svg = line_chart(series, f"{title} over optimizer steps")
    return [{"title": title, "unit": unit, "svg": svg, "series": series}] if svg else []


def score_rows(run: Run, several: bool) -> list[dict[str, Any]]:
    """Rows of the ROUGE table: per evaluation the model, and per split lead-n once."""
    rows: list[dict[str, Any]] = []
    prefix = f"{run.name}: " if several else ""
    leads = set()
    for item in sorted(run.evaluations, key=lambda item: (item.metrics["split"], not item.metrics["trained"])):
        metrics = item.metrics
        split = metrics["split"]
        rows.append(
            {
                "name": prefix + ("trained model" if metrics["trained"] else "untrained model"),
                "split": split,
                "main": metrics["trained"],
                "cells": [_cell(metrics["rouge"][key]) for key, _ in ROUGE_COLUMNS],
                "words": round(metrics["mean_words"]["generated"]),
                "loss": f"{metrics['loss']:.3f}",
                "shuffled": "" if metrics.get("shuffled_loss") is None else f"{metrics['shuffled_loss']:.3f}",
            }
        )
        if split not in leads:
            leads.add(split)
            cells = [_cell(metrics["lead_rouge"][key]) for key, _ in ROUGE_COLUMNS]
            words = round(metrics["mean_words"]["lead"])
            name = f"{prefix}lead-{metrics['lead_words']}"
            rows.append(
                {
                    "name": name,
                    "split": split,
                    "main": False,
                    "cells": cells,
                    "words": words,
                    "loss": "",
                    "shuffled": "",
                }
            )
    return rows


def _cell(interval: dict[str, float]) -> dict[str, str]:
    low, high = 100 * interval["low"], 100 * interval["high"]
    return {"mean": f"{100 * interval['mean']:.1f}", "interval": f"{low:.1f}–{high:.1f}"}


def documents(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Highlighted documents of trained models, with their summaries."""
    views = []
    for run in runs:
        for item in run.evaluations:
            if item.metrics["trained"]:
                prefix = f"{run.name}: " if len(runs) > 1 else ""
                views += [
                    document_view(entry, item.rows.get(entry["key"]), f"{prefix}{entry.get('id') or entry['key']}")
                    for entry in item.highlights
                ]
    return views


def preparations(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Per shards folder and split: documents, tokens, and what was dropped why."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.preparation is not None:
            seen[run.config.data.shards] = [
                {
                    "split": split,
                    "documents": f"{counts['documents']:,}",
                    "source_tokens": short(float(f"{counts['source_tokens']:.3g}")),
                    "target_tokens": short(float(f"{counts['target_tokens']:.3g}")),
                    "dropped": ", ".join(
                        f"{why.replace('_', ' ')} {n:,}" for why, n in sorted(counts["dropped"].items())
                    ),
                }
                for split, counts in run.preparation.items()
            ]
    return [{"folder": folder, "splits": splits} for folder, splits in seen.items()]


def settings(runs: Sequence[Run]) -> dict[str, Any]:
    """Settings that differ between runs as a table, and each run's whole configuration as YAML."""
    from trainer.config_loader import config_to_yaml

    flat = [flatten(asdict(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = [(key, [str(values.get(key, "")) for values in flat]) for key in keys]
    return {
        "differing": [(key, values) for key, values in rows if len(set(values)) > 1],
        "whole": [(run.name, config_to_yaml(run.config)) for run in runs],
    }


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat

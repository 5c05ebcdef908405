"""Fills the template with what runs left behind. The page needs no other file."""

import os
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from markupsafe import Markup

from transpooler.common import INCOMPLETE_SUFFIX, UserError, atomic_write, percent, say
from transpooler.trainer.report.documents import LEVELS, arm_view, document_views
from transpooler.trainer.report.overview import (
    ROUGE_COLUMNS,
    budget_curves,
    charts,
    headline,
    name_dialects,
    overview,
    own_metrics,
    score_rows,
)
from transpooler.trainer.report.poolers import explain_absence, strips
from transpooler.trainer.report.runs import read_runs
from transpooler.trainer.report.samples import collect_documents, samples
from transpooler.trainer.report.settings import corpora, settings

EMPTY: dict[str, Any] = dict.fromkeys(
    (
        "runs",
        "headline",
        "overview",
        "unmarked",
        "strips",
        "unpooled",
        "samples",
        "scores",
        "dialects",
        "own_metrics",
        "budgets",
        "charts",
        "corpora",
    ),
    (),
) | {"settings": {"differing": [], "whole": [], "unknown": []}}


_LOOKED_AT_BYTES = 1024
_GENERATOR = b'<meta name="generator" content="transpooler">'
"""Stands at the beginning of every page."""


def write_report(runs: list[Path], output: Path) -> None:
    """Write one self-contained HTML file about the run folders.

    Raises UserError if one is no run folder, is given twice, or is broken.
    """
    read = read_runs(runs)
    for run in read:
        if run.unknown_keys:
            say(f"{run.name}: config.yaml is of another version; left out: {', '.join(run.unknown_keys)}")
        for corpus in run.corpora:
            if corpus.splits is None:
                say(f"{run.name}: data: no report.json in {corpus.folder}")
    evaluated = collect_documents(read)
    several = len(read) > 1
    scored = score_rows(read)
    marked, pictures = document_views(evaluated), strips(read)
    page = _render(
        max((len(arm.get("stages", ())) for view in marked for arm in view["arms"]), default=0),
        title=" · ".join(run.name for run in read),
        documents=marked,
        unmarked=explain_absence(read, marked) if marked or several else (),
        runs=read,
        headline=() if several else headline(read[0]),
        overview=overview(read) if several else (),
        budgets=budget_curves(read),
        charts=charts(read),
        strips=pictures,
        unpooled=explain_absence(read) if pictures or several else (),
        samples=samples(evaluated),
        scores=scored,
        own_metrics=own_metrics(scored),
        dialects=name_dialects([item.metrics for item in run.evaluations] for run in read),
        corpora=corpora(read),
        settings=settings(read),
    )
    _write(page, output)


def write_documents(highlighted: Iterable[dict[str, Any]], output: Path, num_documents: int) -> None:
    """Write such a file about documents alone; see `render_documents`."""
    _write(render_documents(highlighted, num_documents), output)


def render_documents(highlighted: Iterable[dict[str, Any]], num_documents: int) -> Iterator[str]:
    """Yield the parts of such a page about documents alone, at least one.

    `highlighted` are results of `highlight` with name and generated; where they have the sentences of the summary with
    their sources (start and end in characters of the pieces put together), the page shows these beside the document.
    They are read one by one: memory does not grow with their number.
    """
    views = (
        {"name": entry["name"], "reference": None, "arms": [arm_view(entry, entry["generated"])]}
        for entry in highlighted
    )
    first = next(views)
    title = first["name"] if num_documents == 1 else f"{num_documents:,} documents"
    return _render(len(first["arms"][0]["stages"]), title=title, documents=chain([first], views))


def _render(num_stages: int, **parts: Any) -> Iterator[str]:
    """Fill the template; a part that is not given is left out of the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    page: Iterator[str] = environment.from_string(_read("template.html")).generate(
        EMPTY | parts,
        css=Markup(_read("report.css") + shade_rules(num_stages) + _read("sources.css")),
        js=Markup(_read("report.js") + _read("sources.js")),
        rouge_columns=[label for _, label in ROUGE_COLUMNS],
        levels=range(1, LEVELS + 1),
    )
    return page


def _read(name: str) -> str:
    return files("transpooler.trainer.report").joinpath(name).read_text(encoding="utf-8")


def check_page(output: Path) -> None:
    """UserError where OUTPUT.incomplete is a file that no page of ours, cut by a kill, can be: it would be lost."""
    incomplete = output.with_name(output.name + INCOMPLETE_SUFFIX)
    if not os.path.lexists(incomplete):
        return
    if incomplete.is_file() and not incomplete.is_symlink():
        with open(incomplete, "rb") as file:
            begins = file.read(_LOOKED_AT_BYTES)
        if not begins or _GENERATOR in begins:
            return
    raise UserError(f"{incomplete}: was not left by a page of `transpooler`; move it, or choose another name")


def _write(page: Iterator[str], output: Path) -> None:
    check_page(output)
    with atomic_write(output) as file:
        file.writelines(page)
    say(f"report: {output}")


def shade_rules(num_stages: int) -> str:
    """CSS: a document that shows stage i shows the tenths of that stage, and its s<i>-<level> have their background."""
    rules = [f'[data-stage="{stage}"] > [data-for="{stage}"]{{display:grid}}' for stage in range(num_stages)]
    for level in range(1, LEVELS + 1):
        names = ",".join(f'[data-stage="{stage}"] .s{stage}-{level}' for stage in range(num_stages))
        names = f"{names},.shade-{level}" if names else f".shade-{level}"
        share = round(6 + 94 * level / LEVELS)
        ink = "color:var(--on-mark);" if level > LEVELS * 0.6 else ""
        rules.append(f"{names}{{background:color-mix(in srgb,var(--mark) {share}%,transparent);{ink}}}")
    return "\n".join(rules)

"""Cells: what a finished run of a study (an arm and a seed) leaves for tables and curves, in one small file.

OUTPUT/cells/ARM-seedN.json needs neither the run nor its machine: the cells of several machines, put into one folder,
make one table, and committed ones are not trained again.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transpooler.benchmarks.quality.losses import fingerprint_documents, measure_losses
from transpooler.benchmarks.quality.runs import (
    StudyRun,
    Workplace,
    agree,
    is_current,
    is_evaluated,
    plan_run,
    read_environments,
)
from transpooler.benchmarks.quality.study import Study
from transpooler.benchmarks.quality.tasks import score_of
from transpooler.common import UserError, atomic_write, read_json, say
from transpooler.trainer.evaluation.rouge import dialect_of
from transpooler.trainer.metrics import read_metrics

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
DIGITS = 6
"""Of the numbers in a cell, but for its settings."""

Cells = dict[str, dict[int, "StudyCell"]]
"""Arm -> seed -> cell."""


@dataclass(frozen=True, kw_only=True)
class StudyCell:
    """A finished run. Lists are as long as the evaluated split, one number a document."""

    settings: list[dict[str, Any]]
    """`StudyRun.settings`."""
    documents: str
    """`fingerprint_documents`."""
    losses: dict[str, list[float]]
    """loss_sum, shuffled_loss_sum (with another document's source), target_tokens."""
    scores: dict[str, list[float | None]]
    """F1 of each kind of ROUGE, and shares in 0..1: facts (of the planted ones that are asked for), where a study has
    such; evidence (recall of what the decoder could read; None: there is none), where an arm pools."""
    dialect: str | None
    """How ROUGE was computed, where there is any."""
    numbers: dict[str, float]
    """Steps, source tokens, minutes and memory of training; tokens that are kept of a document, on average."""
    curve: list[dict[str, float]]
    """Held-out loss against step, source tokens and minutes of training, from the first step of what it began as."""
    trained_with: dict[str, list[dict[str, Any]]]
    """Name of each run that has a part in it -> commit, versions and machine of each start of its training."""


def keep_cell(place: Workplace, run: StudyRun) -> None:
    """Write the cell of a trained and evaluated run, unless it is there."""
    path = place.cell_file(run)
    if not is_current(path, run.folder):
        cell = asdict(_make_cell(place.study, run))
        rounded = json.loads(json.dumps(cell), parse_float=_round)
        # Settings are compared: weights may come with an eps of seventeen digits.
        with atomic_write(path) as file:
            file.write(json.dumps(rounded | {"settings": cell["settings"]}, ensure_ascii=False) + "\n")


def _round(number: str) -> float:
    return float(f"{float(number):.{DIGITS}g}")


def find_cell(place: Workplace, run: StudyRun) -> StudyCell | None:
    """The cell of a run that was made as planned from these documents; None if there is none at all.

    Raises UserError for one that was made otherwise, or that cannot be read.
    """
    path = place.cell_file(run)
    if not path.is_file():
        return None
    try:
        cell = StudyCell(**read_json(path, "remove it"))
    except TypeError:
        raise UserError(f"{path}: is no cell of a study; remove it") from None
    if not agree(cell.settings, run.settings):
        raise UserError(f"{path}: was made with other settings than {place.study.path}; choose another --output")
    if cell.documents != fingerprint_documents(run.config):
        raise UserError(f"{path}: was made from other documents than {place.shards}; choose another --output")
    return cell


def collect_cells(place: Workplace) -> Cells:
    """Collect all finished cells of the study, asked for now or earlier, made here or put here."""
    found: Cells = {}
    for arm in place.study.arms:
        for seed in place.find_seeds(arm):
            run = plan_run(place, arm, seed)
            try:
                is_ours = run.is_trained and run.is_as_planned()
                if is_ours and is_evaluated(run):
                    keep_cell(place, run)
                elif run.is_trained and not is_ours and not place.cell_file(run).is_file():
                    raise UserError(f"{run.folder.name}: was trained with other settings than the study's")
                if cell := find_cell(place, run):
                    found.setdefault(arm.name, {})[seed] = cell
            except UserError as error:
                say(f"{error}; left out of the table")
    return found


def _make_cell(study: Study, run: StudyRun) -> StudyCell:
    parts = run.list_parts()
    curve, numbers = _read_training(parts)
    evaluated = read_json(run.evaluation.metrics) if run.config.data.needs_summaries else None
    return StudyCell(
        settings=run.settings,
        documents=fingerprint_documents(run.config),
        losses=measure_losses(run.folder, run.config, run.keep),
        scores=_read_scores(study, run) if evaluated else {},
        dialect=dialect_of(evaluated) if evaluated else None,
        numbers=numbers | ({"kept_tokens": evaluated["kept_tokens"]} if evaluated else {}),
        curve=curve,
        trained_with={part.name: read_environments(part) for part in parts},
    )


def _read_scores(study: Study, run: StudyRun) -> dict[str, list[float | None]]:
    """Scores of each document."""
    rows = [json.loads(line) for line in run.evaluation.generated.read_text(encoding="utf-8").splitlines()]
    scores: dict[str, list[float | None]] = {name: [row["rouge"][name] for row in rows] for name in ROUGE}
    if study.corpus:
        score = score_of(study.corpus)
        scores["facts"] = [score(row["reference"], row["generated"]) for row in rows]
    if all("evidence_recall" in row for row in rows):
        scores["evidence"] = [None if _is_missing(row["evidence_recall"]) else row["evidence_recall"] for row in rows]
    return scores


def _is_missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def sum_seconds(history: list[dict[str, Any]]) -> list[float]:
    """Sum up seconds of training at each line of train metrics; evaluating and saving in between count."""
    done, elapsed, times = 0, 0.0, []
    for row in history:
        elapsed += row["step_time_s"] * (row["step"] - done)
        done = row["step"]
        times.append(elapsed)
    return times


def _read_training(parts: list[Path]) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The curve, and steps, source tokens, minutes and memory, of all parts together."""
    points: list[dict[str, float]] = []
    tokens, minutes, steps, peak_memory_mib = 0, 0.0, 0, 0.0
    for part in parts:
        rows = read_metrics(part)
        history = [row for row in rows if row["split"] == "train"]
        times = sum_seconds(history)
        at = dict(zip([row["step"] for row in history], times, strict=True))
        seen = {row["step"]: row["source_tokens"] for row in history}
        points += [
            {
                "step": steps + row["step"],
                "source_tokens": tokens + seen[row["step"]],
                "minutes": minutes + at[row["step"]] / 60,
                "loss": row["loss"],
            }
            for row in rows
            if row["split"] == "validation" and row["step"] in at
        ]
        steps += history[-1]["step"]
        tokens += history[-1]["source_tokens"]
        minutes += times[-1] / 60
        peak_memory_mib = max(peak_memory_mib, *(row["peak_memory_mib"] for row in history))
    spent = {"steps": steps, "source_tokens": tokens, "train_minutes": minutes, "peak_memory_mib": peak_memory_mib}
    return points, spent

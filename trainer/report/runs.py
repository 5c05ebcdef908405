"""What a report reads from a run folder. Everything but config.yaml and metrics.jsonl may be absent."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transpooler.common import UserError, local_path, read_json
from transpooler.data_pipeline.sources.locations import is_remote
from transpooler.trainer.config import Config
from transpooler.trainer.config.load import load_saved_config
from transpooler.trainer.metrics import read_metrics
from transpooler.trainer.run_folder import EvaluationFolder, RunFolder, require_run

REQUIRED_METRICS = ("split", "num_documents", "rouge", "lead_rouge", "loss", "trained", "lead_words", "mean_words")
REQUIRED_TEXTS = ("key", "generated", "reference")
REQUIRED_HIGHLIGHTS = ("key", "pieces", "stages", "stage_names", "num_tokens", "num_read_tokens")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One folder that `transpooler evaluate` wrote."""

    name: str
    metrics: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    """Rows of generated.jsonl by key."""
    highlights: dict[str, dict[str, Any]]
    """Entries of highlights.json by key."""


@dataclass(frozen=True, kw_only=True)
class RunCorpus:
    """A shards folder that a run read."""

    folder: str
    """Where it lies, if that can be told."""
    splits: dict[str, dict[str, Any]] | None
    """The `splits` of its report.json; None where that cannot be reached."""
    role: str = ""
    """Name and weight in the run's mixture, if it has one."""


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """One run folder, read."""

    name: str
    config: Config
    unknown_keys: list[str]
    """Keys of config.yaml that this version does not know."""
    metrics: list[dict[str, Any]]
    evaluations: list[Evaluation]
    """Those of the model as it is, and of the untrained one."""
    budgets: list[Evaluation]
    """Those of `--keep`, from few kept tokens to many."""
    corpora: list[RunCorpus]

    @property
    def trained(self) -> list[Evaluation]:
        """Evaluations of the trained model."""
        return [item for item in self.evaluations if item.metrics["trained"]]

    def curve(self, split: str, key: str) -> list[tuple[float, float]]:
        """(step, value) of one metric; absent values are left out."""
        lines = [line for line in self.metrics if line.get("split") == split and line.get(key) is not None]
        return [(line["step"], line[key]) for line in lines]


def read_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """Read run folders (UserError if one is none, is given twice, or holds a broken file)."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder)
        if first is not folder:
            raise UserError(f"{folder}: the same run as {first}; give each run once")
    return [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]


def read_run(folder: Path, name: str) -> ReportedRun:
    """Read a run folder (UserError if it is none, or if a file in it is broken)."""
    require_run(folder)
    config, unknown_keys = load_saved_config(RunFolder(folder).config)
    evaluations = [read_evaluation(part) for part in RunFolder(folder).finished_evaluations()]
    budgets = [item for item in evaluations if item.metrics.get("keep") is not None and item.metrics["trained"]]
    return ReportedRun(
        name=name,
        config=config,
        unknown_keys=unknown_keys,
        metrics=read_metrics(folder),
        evaluations=[item for item in evaluations if item.metrics.get("keep") is None],
        budgets=sorted(budgets, key=lambda item: item.metrics["kept_tokens"]),
        corpora=_read_corpora(config, started_in(folder, config.run)),
    )


def run_names(folders: Sequence[Path]) -> list[str]:
    """Short names: the last part of each path, or the whole path where that is not unique."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def started_in(folder: Path, run: str) -> Path:
    """The working directory of the training: the folder's path without the `run` of its configuration at its end.

    That is where relative paths in the configuration start. The present one if `run` does not say.
    """
    parts, end = folder.resolve().parts, local_path(run).parts
    return Path(*parts[: -len(end)]) if end and parts[-len(end) :] == end else Path()


def _read_corpora(config: Config, start: Path) -> list[RunCorpus]:
    mixture = [(entry.shards, f"{entry.name}, weight {entry.weight:g}") for entry in config.data.mixture]
    corpora = []
    for shards, role in [(config.data.shards, "validation and tokenizer" if mixture else ""), *mixture]:
        folder = shards if is_remote(shards) else str(start / local_path(shards))
        report = Path(folder) / "report.json"
        splits = read_json(report).get("splits") if report.is_file() else None
        corpora.append(RunCorpus(folder=folder, splits=splits, role=role))
    return corpora


def read_evaluation(folder: EvaluationFolder) -> Evaluation:
    """Read what `transpooler evaluate` wrote (UserError if a file is broken or lacks something)."""
    metrics = read_json(folder.metrics)
    _require(REQUIRED_METRICS, metrics, folder.metrics)
    entries = read_json(folder.highlights) if folder.highlights.is_file() else []
    for number, entry in enumerate(entries, 1):
        _require(REQUIRED_HIGHLIGHTS, entry, f"{folder.highlights}: entry {number}")
    return Evaluation(
        name=folder.root.name,
        metrics=metrics,
        rows={row["key"]: row for row in _read_lines(folder.generated)},
        highlights={entry["key"]: entry for entry in entries},
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line:
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise UserError(f"{path}:{number}: not valid JSON; run `transpooler evaluate` again") from None
            _require(REQUIRED_TEXTS, rows[-1], f"{path}:{number}")
    return rows


def _require(keys: Sequence[str], values: Any, where: Path | str) -> None:
    missing = [key for key in keys if not isinstance(values, dict) or key not in values]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}; run `transpooler evaluate` again")

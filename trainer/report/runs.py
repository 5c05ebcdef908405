"""What a report reads from a run folder. Everything but config.yaml and metrics.jsonl may be absent."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from trainer.config import Config

REQUIRED_METRICS = ("split", "num_documents", "rouge", "lead_rouge", "loss", "trained", "lead_words", "mean_words")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One folder that `transpooler evaluate` wrote."""

    name: str
    metrics: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    """Rows of generated.jsonl by key."""
    highlights: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, read."""

    name: str
    config: Config
    metrics: list[dict[str, Any]]
    evaluations: list[Evaluation]
    preparation: dict[str, Any] | None
    """The `splits` of the shards' report.json, if it can be reached."""

    def curve(self, split: str, key: str) -> list[tuple[float, float]]:
        """(step, value) of one metric; absent values are left out."""
        lines = [line for line in self.metrics if line.get("split") == split and line.get(key) is not None]
        return [(line["step"], line[key]) for line in lines]


def read_run(folder: Path, name: str) -> Run:
    """Read a run folder (UserError if it is none, or if a file in it is broken)."""
    from trainer.config_loader import load_config
    from trainer.metrics import read_metrics

    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml); give the folder that `transpooler train` wrote")
    config = load_config([folder / "config.yaml"])
    prepared = Path(config.data.shards) / "report.json"
    return Run(
        name=name,
        config=config,
        metrics=read_metrics(folder),
        evaluations=[_read_evaluation(path.parent) for path in sorted(folder.glob("evaluation/*/metrics.json"))],
        preparation=read_json(prepared).get("splits") if prepared.is_file() else None,
    )


def run_names(folders: list[Path]) -> list[str]:
    """Short names: the last part of each path, or the whole path where that is not unique."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _read_evaluation(folder: Path) -> Evaluation:
    metrics = read_json(folder / "metrics.json")
    if missing := [key for key in REQUIRED_METRICS if key not in metrics]:
        raise UserError(f"{folder / 'metrics.json'}: lacks {', '.join(missing)}; run `transpooler evaluate` again")
    return Evaluation(
        name=folder.name,
        metrics=metrics,
        rows={row["key"]: row for row in _read_lines(folder / "generated.jsonl")},
        highlights=read_json(folder / "highlights.json") if (folder / "highlights.json").is_file() else [],
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
    return rows

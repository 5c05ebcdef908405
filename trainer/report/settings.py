"""Configurations of runs: what differs between them; and what is known of the corpora that they read."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from yaml import safe_dump

from transpooler.trainer.config.load import config_to_yaml
from transpooler.trainer.report.charts import shorten
from transpooler.trainer.report.runs import ReportedRun, RunCorpus


def settings(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Settings that differ between runs as a table, and each run's whole configuration as YAML."""
    flat = [flatten(asdict(run.config)) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values if key != "run")
    rows = [(key, [format_setting(key, values.get(key)) for values in flat]) for key in keys]
    return {
        "differing": [(key, values) for key, values in rows if len(set(values)) > 1],
        "whole": [(run.name, config_to_yaml(run.config)) for run in runs],
        "unknown": [(run.name, run.unknown_keys) for run in runs if run.unknown_keys],
    }


def format_setting(key: str, value: Any) -> str:
    """A setting as a user writes it: `none`, YAML, and pooling as `after layer 2 → 512, successive_halving`."""
    if value is None or value in ((), []):
        return "none"
    if key == "model.pooling":
        return "; ".join(
            f"after layer {stage['after_layer']} → {stage['length'] or stage['ratio']}, {stage['operator']}"
            for stage in value
        )
    return safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def corpora(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Per shards folder and split: documents, tokens, and what was dropped why."""
    seen = {(corpus.folder, corpus.role): corpus for run in runs for corpus in run.corpora}
    return [
        {"folder": corpus.folder, "role": corpus.role, "splits": None if corpus.splits is None else _splits(corpus)}
        for corpus in seen.values()
    ]


def _splits(corpus: RunCorpus) -> list[dict[str, str]]:
    return [
        {
            "split": split,
            "documents": f"{counts['documents']:,}",
            "source_tokens": shorten(float(f"{counts['source_tokens']:.3g}")),
            "target_tokens": shorten(float(f"{counts['target_tokens']:.3g}")),
            "dropped": ", ".join(f"{why.replace('_', ' ')} {n:,}" for why, n in sorted(counts["dropped"].items())),
        }
        for split, counts in (corpus.splits or {}).items()
    ]

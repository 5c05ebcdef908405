"""Run folders as `train` and `evaluate` leave them: made by hand, for the report, or copied as they once were."""

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

from transpooler.trainer.config.load import config_from_dict, save_config

HOSTILE = '</script><script>alert("1")</script><b>bold</b>'


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def scores(mean: float) -> dict[str, Any]:
    return {name: interval(mean) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}


def make_run(folder: Path, learning_rate: float = 1e-3, *, data: dict[str, Any] | None = None, **settings: Any) -> Path:
    shards = folder.parent / "shards"
    values = {
        "run": str(folder),
        "data": {"shards": str(shards), **(data or {})},
        "optimizer": {"learning_rate": learning_rate},
        **settings,
    }
    save_config(config_from_dict(values), folder / "config.yaml")
    lines: list[dict[str, Any]] = [
        {"step": step, "split": "train", "loss": 9.0 - step, "source_tokens_per_s": 1000 + step} for step in range(1, 5)
    ]
    lines.append({"step": 4, "split": "validation", "loss": 6.125, "num_target_tokens": 10})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def add_evaluation(run: Path, *, trained: bool, **others: Any) -> None:
    """An evaluation of the test split; `others` are further numbers, or replace what is written else."""
    name = "test" if trained else "test-untrained"
    folder = run / "evaluation" / (f"{name}-keep{others['keep']}" if "keep" in others else name)
    folder.mkdir(parents=True)
    metrics = {
        "trained": trained,
        "split": "test",
        "num_documents": 7,
        "loss": 5.25 if trained else 9.0,
        "shuffled_loss": 5.75,
        "lead_words": 31,
        "mean_words": {"generated": 20.0, "reference": 31.0, "lead": 31.0},
        "rouge": scores(0.25 if trained else 0.02),
        "lead_rouge": scores(0.2),
    } | others
    row = {"key": "k", "id": HOSTILE, "generated": HOSTILE, "reference": "right & good", "rouge": {"rouge1": 0.25}}
    mark = {
        "key": "k",
        "id": HOSTILE,
        "pieces": ["def f():\n", "    return", " 1\n", HOSTILE],
        "stages": [[1.0, 0.5, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]],
        "stage_names": ["after layer 1: 2 of 4 tokens", "after layer 2: 1 of 4 tokens"],
        "num_tokens": 9,
        "num_read_tokens": 4,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "generated.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "highlights.json").write_text(json.dumps([mark] if trained else []))


def copy_up_to(source: Path, run: Path, step: int) -> None:
    """A run as it was when the checkpoint of `step` was its newest."""
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("export", "latest"))
    for folder in (run / "checkpoints").glob("global_step*"):
        if int(folder.name.removeprefix("global_step")) > step:
            shutil.rmtree(folder)


def section(page: str, id: str) -> str:
    """The HTML of one section of a report."""
    return page[page.index(f'<section id="{id}"') :].partition("</section>")[0]


def text_of(html: str) -> str:
    """The words of HTML, one space apart."""
    return " ".join(without_tags(html, " ").split())


def without_tags(html: str, between: str = "") -> str:
    """The text of HTML to the character, with `between` in place of each tag."""
    return unescape(re.sub(r"<[^>]*>", between, html))

"""The whole page: self-contained, escaped, complete with little, and clear about broken runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from trainer.config_loader import config_from_dict, save_config
from trainer.report import write_report

HOSTILE = '</script><script>alert("1")</script><b>bold</b>'


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def scores(mean: float) -> dict[str, Any]:
    return {name: interval(mean) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}


def make_run(folder: Path, learning_rate: float = 1e-3) -> Path:
    shards = folder.parent / "shards"
    values = {
        "run": str(folder),
        "data": {"shards": str(shards)},
        "optimizer": {"learning_rate": learning_rate},
    }
    save_config(config_from_dict(values), folder / "config.yaml")
    lines: list[dict[str, Any]] = [
        {"step": step, "split": "train", "loss": 9.0 - step, "source_tokens_per_s": 1000 + step} for step in range(1, 5)
    ]
    lines.append({"step": 4, "split": "validation", "loss": 6.125, "num_target_tokens": 10})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def add_evaluation(run: Path, *, trained: bool) -> None:
    folder = run / "evaluation" / ("test" if trained else "test-untrained")
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
    }
    row = {"key": "k", "id": HOSTILE, "generated": HOSTILE, "reference": "right & good"}
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


def page_of(tmp_path: Path, *runs: Path) -> str:
    write_report(list(runs), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_one_run_with_everything(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    add_evaluation(run, trained=False)
    counts = {"documents": 12, "source_tokens": 3456, "target_tokens": 78, "shards": 1, "dropped": {"bad_json": 2}}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "report.json").write_text(json.dumps({"splits": {"train": counts}}))
    page = page_of(tmp_path, run)
    for text in ("25.0", "lead-31 20.0", "untrained 2.0", "5.250", "wrong summaries 5.750", "6.125", "bad json 2"):
        assert text in page
    assert "first 4 of 9 tokens" in page
    assert '<span class="s0-9">def f():\n</span>    <span class="s0-4 s1-9">return</span>' in page


def test_nothing_in_a_document_becomes_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    page = page_of(tmp_path, run)
    assert HOSTILE not in page
    assert "<b>bold" not in page
    assert page.count("<script>") == page.count("</script>") == 1
    assert page.count("&lt;/script&gt;") >= 3  # name, summary, document


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    page = page_of(tmp_path, run)
    for reference in ("http://", "https://", "src=", "href=", "@import", "url("):
        assert reference not in page


def test_a_run_that_was_never_evaluated(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "first"))
    assert "Training" in page
    assert "What the poolers kept" not in page


def test_two_runs_are_compared(tmp_path: Path) -> None:
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", learning_rate=2e-3)
    page = page_of(tmp_path, *runs)
    differing = page[page.index("differs") : page.index("a: config.yaml")]
    assert "optimizer.learning_rate" in differing
    assert "train.steps" not in differing
    assert "b held-out" in page


def test_broken_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report([tmp_path], tmp_path / "report.html")
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    (run / "evaluation" / "test" / "generated.jsonl").write_text('{"key": "a"}\n{"key"\n')
    with pytest.raises(UserError, match=r"generated.jsonl:2: not valid JSON"):
        write_report([run], tmp_path / "report.html")
    (run / "evaluation" / "test" / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="lacks split"):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()

"""Folders of any name, links and relative paths, in the commands that read and write them: documents to summaries."""

import json
import os
import re
from functools import partial
from pathlib import Path

import forked
import pytest

from tests.tiny import MODEL, write_corpus
from transpooler.launch.cli import main

STEERING = "a\nb\x1b[2J\r\x85c\u2028\u202e"
"""A name that would begin lines and clear the screen, if it were printed."""
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d |transpooler: error: ")


@pytest.mark.parametrize(
    ("name", "target"),
    [("a b [c] {d}'\"$e", None), ("ü 漢=~%@!; #", "elsewhere"), ("./~", None), (STEERING, "elsewhere")],
)
def test_folders_of_any_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    target: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = Path(name)
    Path(target or name).mkdir()
    if target:
        folder.symlink_to(target)
    files = {split: json.dumps([f"{name}/{split}.jsonl"]) for split in write_corpus(folder, {"train": 8, "test": 2})}
    (folder / "c.yaml").write_text(json.dumps({"model": MODEL, "optimizer": {"warmup_steps": 1}}))
    sizes = ["data.max_source_tokens=96", "data.batch_size=4", "data.validation_split=null"]
    settings = [f"{name}/c.yaml", f"run={name}/run", f"data.shards={name}/shards", "train.steps=2", *sizes]

    def run(*arguments: str, code: int = 0) -> None:
        assert main(list(arguments)) == code
        check_log(capfd.readouterr().err)

    def check_log(text: str) -> None:
        """Each line is one of ours."""
        assert not [line for line in text.splitlines() if not (LOG_LINE.match(line) and line.isprintable())]

    sources = [f"prepare.sources.{split}={paths}" for split, paths in files.items()]
    run("prepare", f"prepare.output={name}/shards", *sources, "prepare.tokenizer.vocab_size=300")
    job = forked.train(1, settings, tmp_path / "log.txt", partial(os.chdir, tmp_path))
    assert job.codes() == [0], job.output()
    check_log(job.output())
    run("checkpoints", f"{name}/run", "--verify")
    run("launch", "local", *settings, "cluster.processes_per_node=2", "--dry-run")
    run("evaluate", f"{name}/run", "evaluation.max_documents=2", "generation.max_new_tokens=2")
    run("export", f"{name}/run", "--output", f"{name}/model")
    run("summarize", f"{name}/test.jsonl", "--model", f"{name}/model", "--max-new-tokens=2", "--output", f"{name}/s")
    run("report", f"{name}/run")
    run("verify", f"{name}/shards")
    (folder / "shards" / "test" / "documents.npy").unlink()
    run("verify", f"{name}/shards", code=2)
    run("train", *settings, "data.max_source_tokens=1", code=2)
    run("summarize", f"{name}/nothing", "--model", f"{name}/model", code=2)
    run("evaluate", f"{name}/nothing.yaml", code=2)
    found = {path.name for path in folder.iterdir()}
    assert found >= {"shards", "run", "model", "s"}
    assert {"export", "evaluation", "report.html"} <= {path.name for path in (folder / "run").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "log.txt", *([target] if target else [])}

"""The demo's documents and presets."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.launch.demo import papers
from transpooler.launch.demo.corpus import own_sources, split_file
from transpooler.trainer.config import load_config, save_config


def write_pairs(path: Path, count: int) -> None:
    lines = [json.dumps({"article": f"article {number}", "abstract": f"abstract {number}"}) for number in range(count)]
    data = "\n".join([*lines, "", '{"article"', "[3]"]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["papers.jsonl", "papers.jsonl.gz"])
def test_a_file_is_split_by_article(tmp_path: Path, name: str) -> None:
    write_pairs(tmp_path / name, 200)
    paths = split_file(tmp_path / name, tmp_path / "corpus")
    lines = {split: path.read_text().splitlines() for split, path in paths.items()}
    together = lines["train"] + lines["validation"] + lines["test"]
    assert len(together) == len(set(together)) == 202
    assert '{"article"' in lines["train"]
    assert 5 <= len(lines["test"]) <= 40
    assert 5 <= len(lines["validation"]) <= 40
    assert lines["pretrain"] == lines["train"]
    before = {split: path.read_bytes() for split, path in paths.items()}
    again = split_file(tmp_path / name, tmp_path / "corpus")
    assert {split: path.read_bytes() for split, path in again.items()} == before


def test_a_repeated_article_stays_in_one_split(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a.jsonl", 60)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(text + "\n" + text.replace("abstract ", "another "))
    paths = split_file(tmp_path / "b.jsonl", tmp_path / "corpus")
    articles = {
        split: {json.loads(line)["article"] for line in paths[split].read_text().splitlines() if "abstract" in line}
        for split in ("train", "validation", "test")
    }
    assert not articles["train"] & articles["test"]
    assert not articles["train"] & articles["validation"]
    assert not articles["validation"] & articles["test"]


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    write_pairs(tmp_path / "few.jsonl", 1)
    (tmp_path / "broken.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "papers.csv").write_text("a,b")
    for name, message in (
        ("absent.jsonl", "no such file"),
        ("papers.csv", "jsonl"),
        ("few.jsonl", "leave none for"),
        ("broken.jsonl.gz", "damaged gzip"),
        (".", "lacks train.jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            own_sources(tmp_path / name, tmp_path / "corpus")
    assert list((tmp_path / "corpus").glob("*")) == []


def test_a_folder_of_splits_is_used_as_it_is(tmp_path: Path) -> None:
    for name in ("train.jsonl", "validation.jsonl.gz", "test.jsonl"):
        write_pairs(tmp_path / name, 3)
    sources = own_sources(tmp_path, tmp_path / "corpus")
    assert sources["validation"] == tmp_path / "validation.jsonl.gz"
    assert sources["pretrain"] == tmp_path / "train.jsonl"
    write_pairs(tmp_path / "pretrain.jsonl", 3)
    assert own_sources(tmp_path, tmp_path / "corpus")["pretrain"] == tmp_path / "pretrain.jsonl"


def test_presets_load_and_share_data_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # found from anywhere
    shared, pretrain, finetune = papers.PRESETS
    first, second = load_config([shared, pretrain]), load_config([shared, finetune])
    assert replace(first.seq2seq, dropout=second.seq2seq.dropout) == second.model
    assert first.prepare == second.prepare
    assert (first.data.objective, second.data.objective) == ("gap_sentences", "summarize")
    assert first.engine.zero_stage == 1


def test_a_finished_run_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run_ranks(processes: int, arguments: list[str]) -> int:
        started.append(arguments)
        return 75

    monkeypatch.setattr("transpooler.launch.ranks.local.run_ranks", run_ranks)
    settings = [f"run={tmp_path}", "seed=3"]
    assert papers.train(settings, 2, quiet=True) == 75
    save_config(load_config([], settings), tmp_path / "config.yaml")
    assert papers.train(settings, 2, quiet=False) == 75  # started, but never exported
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    assert papers.train(settings, 2, quiet=False) == 0
    assert papers.train([*settings, "train.steps=5000"], 2, quiet=False) == 75  # other settings
    assert started == [[*settings, "--quiet"], settings, [*settings, "train.steps=5000"]]


def test_results_newer_than_the_model_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [f"run={tmp_path}"]
    results, model = tmp_path / "evaluation" / "test" / "metrics.json", tmp_path / "export" / "config.json"
    for path, content in ((model, "{}"), (results, '{"loss": 1}')):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    os.utime(model, ns=(0, 0))
    assert papers.evaluate(settings, model.parent) == {"loss": 1}
    os.utime(results, ns=(0, 0))
    monkeypatch.setattr("transpooler.trainer.evaluation.evaluate.evaluate", lambda *_, **__: {"loss": 2})
    assert papers.evaluate(settings, model.parent) == {"loss": 2}

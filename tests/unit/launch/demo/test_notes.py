"""The demo's hidden notes: their words, the texts that hide them, and how a passage is shown."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from transpooler.benchmarks.quality.needles import CHOICES, NUM_FIELDS, WORDS_A_FACT, recall_facts
from transpooler.benchmarks.quality.notes import NOTES
from transpooler.benchmarks.quality.study import load_study
from transpooler.common import UserError
from transpooler.launch.cli import main
from transpooler.launch.demo import documentation
from transpooler.launch.demo.corpus import study_sources
from transpooler.launch.demo.notes import mark_kept


def test_no_word_of_a_note_stands_in_two_lists() -> None:
    assert [[len(choices) for choices in places] for places in NOTES.facts] == [[CHOICES] * WORDS_A_FACT] * NUM_FIELDS
    words = [*NOTES.fields, *(word for places in NOTES.facts for choices in places for word in choices)]
    assert [word for word, count in Counter(words).items() if count > 1] == []


def test_notes_are_hidden_in_documentation_of_other_packages_than_those_trained_on(tmp_path: Path) -> None:
    study = load_study("studies/notes")
    paths = study_sources(study, None, tmp_path)
    rows = {split: [json.loads(line) for line in path.open(encoding="utf-8")] for split, path in paths.items()}
    assert [len(rows[split]) for split in ("train", "validation", "test")] == [8000, 200, 200]
    texts = {
        split: {line["id"] for line in map(json.loads, (tmp_path / f"{split}.jsonl").open(encoding="utf-8"))}
        for split in rows
    }
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & (texts["train"] | texts["test"])
    assert "transpooler" not in texts["train"] | texts["validation"] | texts["test"]  # its README quotes notes
    for row in rows["test"]:
        assert 300 <= len(row["article"].split()) <= 400
        assert recall_facts(row["abstract"], row["article"]) == 1
        assert not re.search(r"https?://|<[a-z]+>", row["article"])
    before = {split: path.read_bytes() for split, path in paths.items()}
    again = study_sources(study, None, tmp_path)
    assert {split: path.read_bytes() for split, path in again.items()} == before


def test_too_little_documentation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentation, "MIN_WORDS", 10**6)
    with pytest.raises(UserError, match=r"0 installed packages .* use your own documents"):
        documentation.write_documentation(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_kept_stands_in_brackets_and_the_rest_is_shortened() -> None:
    words = [f" w{number}" for number in range(40)]
    pieces, weights = [*words, " Baker", " slices", *words[:3]], [0.0] * 40 + [1.0, 0.5] + [0.1] * 3
    shown = " w0 w1 w2 w3 w4 w5 w6 … w32 w33 w34 w35 w36 w37 w38 w39 [Baker slices] w0 w1 w2"
    assert mark_kept(pieces, weights) == shown


def test_weights_need_documents(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--weights", "somewhere"]) == 2
    assert "--weights: needs your documents beside it" in capsys.readouterr().err

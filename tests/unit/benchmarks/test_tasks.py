"""Tasks in running text: what is asked has the answer in the document, and nothing else does; the same bytes again."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.tiny import STUDY
from transpooler.benchmarks.quality.needles import make_vocabulary, recall_facts
from transpooler.benchmarks.quality.notes import NOTES
from transpooler.benchmarks.quality.study import TASK_NAMES, load_study
from transpooler.benchmarks.quality.tasks import TASKS, recall_words, score_of, write_task
from transpooler.common import UserError
from transpooler.launch.demo.corpus import study_sources

TEXT = [f"w{number}" for number in range(3000)]
COUNTS = {"train": 20, "test": 12}
LENGTHS = (200, 700)


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    """Two documents a split; together they are longer than what is asked for, alone one of them is not."""
    paths = {split: tmp_path / f"{split}-texts.jsonl" for split in COUNTS}
    for path in paths.values():
        path.write_text("".join(json.dumps({"text": " ".join(part)}) + "\n" for part in (TEXT[:500], TEXT[500:])))
    return paths


def rows_of(name: str, folder: Path, texts: dict[str, Path]) -> list[dict[str, str]]:
    paths = write_task(name, folder / name, texts, lengths=LENGTHS, documents=COUNTS)
    return [json.loads(line) for line in paths["test"].read_text().splitlines()]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_the_same_bytes_again_and_stands_in_running_text(name: str, tmp_path: Path, texts) -> None:
    written = [
        write_task(name, tmp_path / folder, texts, lengths=LENGTHS, documents=COUNTS, seed=seed)
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    bytes_of = [[path.read_bytes() for path in paths.values()] for paths in written]
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0] != bytes_of[2]
    around = " ".join(TEXT + TEXT)
    for row in rows_of(name, tmp_path, texts):
        words = row["article"].split()
        assert 525 <= len(words) <= 700
        assert " ".join(word for word in words if word in set(TEXT)) in around
        score = score_of(name)
        assert score(row["abstract"], row["abstract"]) == 1
        assert score(row["abstract"], "nothing") == 0


def test_one_key_of_many_is_asked_for_at_the_end(tmp_path: Path, texts) -> None:
    for row in rows_of("multi_key", tmp_path, texts):
        text, _, question = row["article"].rpartition("Which is the code of ")
        name = question.removesuffix(" ?")
        found = [part.split()[:5] for part in text.split("The code of ")[1:]]
        assert len({key for key, *_ in found}) == len(found) == 12
        (code,) = [" ".join(code) for key, _, *code in found if key == name]
        assert row["abstract"] == f"{name} {code}"
        assert recall_facts(row["abstract"], row["abstract"]) == 1


def test_chains_lead_from_a_value_to_its_names(tmp_path: Path, texts) -> None:
    for row in rows_of("variables", tmp_path, texts):
        text, _, question = row["article"].rpartition("Which names are ")
        value_of: dict[str, str] = {}
        for part in text.split("Let ")[1:]:
            name, _, given = part.split()[:3]
            value_of[name] = value_of.get(given, given)  # a name is told before it is used
        assert sorted(Counter(value_of.values()).values()) == [5, 5, 5]
        names = [name for name, value in value_of.items() if value == question.removesuffix(" ?")]
        assert row["abstract"].split() == names


def test_the_most_frequent_made_up_words_are_wanted(tmp_path: Path, texts) -> None:
    made_up = set(make_vocabulary().filler)
    for row in rows_of("frequent_words", tmp_path, texts):
        counts = Counter(word for word in row["article"].split() if word in made_up)
        best = counts.most_common(4)
        assert row["abstract"].split() == [word for word, _ in best[:3]]
        assert len({count for _, count in best}) == 4
        assert len(counts) == 9


@pytest.mark.parametrize("name", ["question_first", "question_last"])
def test_a_question_asks_for_what_one_person_does(name: str, tmp_path: Path, texts) -> None:
    for row in rows_of(name, tmp_path, texts):
        words = row["article"].split()
        question = words[:6] if name == "question_first" else words[-6:]
        asked = question[3]
        assert " ".join(question) == f"What does the {asked} do ?"
        notes = [" ".join(words[i : i + 4]) for i, word in enumerate(words) if word == asked and words[i + 1] != "do"]
        assert row["abstract"] == " ".join(notes)
        assert len(notes) == 3
        assert {people for people in NOTES.fields if people in words} == set(NOTES.fields)


def test_words_are_recalled_in_any_order() -> None:
    assert recall_words("a b c d", "d x a") == 0.5


def test_short_texts_are_named(tmp_path: Path, texts) -> None:
    with pytest.raises(UserError, match=r"train-texts.jsonl: all documents together have 3000 words \(needs 4000\)"):
        write_task("variables", tmp_path, texts, lengths=(200, 4000), documents=COUNTS)


def test_a_study_of_a_task_makes_its_documents_and_takes_yours(tmp_path: Path) -> None:
    assert tuple(TASKS) == TASK_NAMES
    path = tmp_path / "study.yaml"
    made = {"corpus": "variables", "corpus_words": [160, 200], "corpus_documents": 7}
    path.write_text(yaml.safe_dump({**STUDY, **made}))
    own = tmp_path / "own"
    own.mkdir()
    for split in ("train", "validation", "test"):
        (own / f"{split}.jsonl").write_text(json.dumps({"article": " ".join(TEXT), "abstract": "x"}) + "\n")
    for data in (None, own):
        paths = study_sources(load_study(path), data, tmp_path / f"out-{data is None}")
        rows = [json.loads(line) for line in paths["train"].read_text().splitlines()]
        assert len(rows) == 7
        assert all(160 <= len(row["article"].split()) <= 200 for row in rows)
        assert (rows[0]["article"].count("w") > 100) == (data is not None)

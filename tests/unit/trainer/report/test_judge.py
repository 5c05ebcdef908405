"""Files for judges: blinded, the same for the same seed, and refused for evaluations that do not belong together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folders import scores

from transpooler.common import UserError, read_json
from transpooler.trainer.report.judge import write_judge_files

DOCUMENT = "Rain fell. Dogs bark. Wet bark."


def evaluation(folder: Path, text: str, count: int = 40, split: str = "test", **changed: Any) -> Path:
    folder.mkdir(parents=True)
    metrics = {
        "trained": True,
        "split": split,
        "num_documents": count,
        "loss": 1.0,
        "lead_words": 3,
        "mean_words": {},
        "rouge": scores(0.2),
        "lead_rouge": scores(0.2),
    }
    rows = [
        {"key": f"k{n}", "id": f"d{n}", "generated": f"{text} {n}", "reference": f"r{n}"} | changed
        for n in range(count)
    ]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "generated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "judge.jsonl").read_text().splitlines()]


def test_summaries_are_blinded_in_a_seeded_order_that_the_key_tells(tmp_path: Path) -> None:
    pair = evaluation(tmp_path / "a", "from a"), evaluation(tmp_path / "b", "from b")
    written = write_judge_files(pair, tmp_path / "judging", seed=3)
    assert [path.name for path in written] == ["judge.jsonl", "key.json"]
    found, key = lines(tmp_path / "judging"), read_json(tmp_path / "judging" / "key.json")
    assert (key["seed"], key["split"]) == (3, "test")
    assert [set(line) for line in found] == [{"key", "id", "reference", "A", "B"}] * 40
    assert str(tmp_path) not in (tmp_path / "judging" / "judge.jsonl").read_text()
    firsts = 0
    for n, line in enumerate(found):
        assert (line["key"], line["id"], line["reference"]) == (f"k{n}", f"d{n}", f"r{n}")
        which = key["documents"][line["key"]]
        assert {which["A"], which["B"]} == {str(folder) for folder in pair}
        for name in "AB":
            assert line[name] == f"from {Path(which[name]).name} {n}"
        firsts += which["A"] == str(pair[0])
    assert 10 <= firsts <= 30  # neither is always A
    again = tmp_path / "again"
    write_judge_files(pair, again, seed=3)
    assert [(again / path.name).read_bytes() for path in written] == [path.read_bytes() for path in written]
    write_judge_files(pair, tmp_path / "other", seed=4)
    assert [line["A"] for line in lines(tmp_path / "other")] != [line["A"] for line in found]


def test_the_passages_that_were_read_stand_beside_the_summaries(tmp_path: Path) -> None:
    def grounded(*places: tuple[int, int]) -> list[dict[str, Any]]:
        return [{"text": "s", "sources": [{"start": start, "end": end, "weight": 0.5} for start, end in places]}]

    pair = (
        evaluation(tmp_path / "a", "a", 1, document=DOCUMENT[:21], sentences=grounded((11, 21), (0, 10), (11, 21))),
        evaluation(tmp_path / "b", "b", 1, document=DOCUMENT, sentences=grounded((22, 31))),
    )
    write_judge_files(pair, tmp_path / "judging", seed=0)
    (line,) = lines(tmp_path / "judging")
    assert line["document"] == DOCUMENT  # of the one that read more
    assert {line[name][0]: line["spans"][name] for name in "AB"} == {
        "a": [{"text": "Rain fell.", "start": 0, "end": 10}, {"text": "Dogs bark.", "start": 11, "end": 21}],
        "b": [{"text": "Wet bark.", "start": 22, "end": 31}],
    }


def test_places_are_left_out_where_the_documents_differ(tmp_path: Path) -> None:
    grounded = [{"text": "s", "sources": [{"start": 0, "end": 10, "weight": 1.0}]}]
    pair = (
        evaluation(tmp_path / "a", "a", 1, document="RAIN FELL.", sentences=grounded),
        evaluation(tmp_path / "b", "b", 1, document=DOCUMENT, sentences=grounded),
    )
    write_judge_files(pair, tmp_path / "judging", seed=0)
    (line,) = lines(tmp_path / "judging")
    spans = {line[name][0]: line["spans"][name] for name in "AB"}
    assert spans == {"a": [{"text": "RAIN FELL."}], "b": [{"text": "Rain fell.", "start": 0, "end": 10}]}


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", "a", 3)
    others = {
        "split validation, but .*a test; evaluate one split": evaluation(tmp_path / "b", "b", 3, split="validation"),
        r"c: lacks document k2 of .*a \(1 documents are in one alone\)": evaluation(tmp_path / "c", "c", 2),
        r"a: lacks document k3 of .*d \(1 documents": evaluation(tmp_path / "d", "d", 4),
        "e: document k1 has another reference than in .*a;": evaluation(tmp_path / "e", "e", 3, reference="r0"),
        "is given twice": tmp_path / "d" / ".." / "a",
        r"none: no finished evaluation \(no metrics\.json\)": tmp_path / "none",
    }
    for message, other in others.items():
        with pytest.raises(UserError, match=message):
            write_judge_files((first, other), tmp_path / "judging", seed=0)
    assert not (tmp_path / "judging").exists()


def test_files_of_another_seed_are_not_overwritten(tmp_path: Path) -> None:
    pair = evaluation(tmp_path / "a", "a"), evaluation(tmp_path / "b", "b")
    first, _ = write_judge_files(pair, tmp_path / "judging", seed=0)
    before = first.read_bytes()
    write_judge_files(pair, tmp_path / "judging", seed=0)
    with pytest.raises(UserError, match=r"judge\.jsonl: is of other evaluations or another seed; choose another"):
        write_judge_files(pair, tmp_path / "judging", seed=1)
    assert first.read_bytes() == before


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    pair = [str(evaluation(tmp_path / name, name)) for name in "ab"]
    code = "import sys; from transpooler.launch.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys."
    command = [sys.executable, "-c", f"{code}modules; sys.exit(code)", "judge", *pair, "--output", f"{tmp_path}/out"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stdout.split()) == (0, [f"{tmp_path}/out/judge.jsonl", f"{tmp_path}/out/key.json"])
    command[-3] = str(tmp_path / "none")
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 2
    assert found.stderr.strip().splitlines()[-1].startswith(f"transpooler: error: {tmp_path}/none: no finished eval")

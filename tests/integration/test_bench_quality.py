"""`transpooler bench quality` from end to end: a study that is killed goes on, and ends as an undisturbed one."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.paths import ROOT
from tests.tiny import STUDY
from transpooler.launch.cli import main


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_as_an_undisturbed_one(
    tmp_path: Path, shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study, out = tmp_path / "tiny.yaml", tmp_path / "out"
    study.write_text(yaml.safe_dump(STUDY))
    command = ["bench", "quality", str(study), "--shards", str(shards), "--output", str(out)]
    program = [sys.executable, "-m", "transpooler", *command]
    killed = subprocess.Popen(program, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    first = out / "runs" / "blockwise-seed0" / "checkpoints"
    while killed.poll() is None and not list(first.glob("global_step*")):
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert main(command) == 0  # what it trains and evaluates are processes of their own
    assert "resumed at step" in capfd.readouterr().err
    rows = {row["arm"]: row for row in json.loads((out / "quality.json").read_text())["rows"]}
    assert [rows[arm]["steps"] for arm in ("blockwise", "warm")] == [12, 12]
    assert rows["blockwise"]["loss"] == pytest.approx(_evaluated_loss(out / "runs" / "blockwise-seed0"), rel=1e-4)
    points = list(csv.DictReader((out / "curves.csv").open()))
    assert [point["step"] for point in points if point["arm"] == "warm"] == ["4", "6", "10", "12"]
    assert (out / "curves.png").stat().st_size > 10_000
    _check_each_seed(out, rows)
    # Started twice, and noted twice: another commit might have been there.
    assert len(json.loads((out / "runs" / "blockwise-seed0" / "environment.json").read_text())) == 2
    (trained,) = json.loads((out / "quality.json").read_text())["environment"]["trained_with"]
    assert (trained["count"], "torch" in trained["versions"]) == (3, True)  # both arms, and what warm starts as
    # All is done: nothing is trained or evaluated again.
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.json*")}
    assert main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.json*")}
    _cells_make_the_table_elsewhere(command, study, out, tmp_path / "elsewhere", rows, capfd)
    _a_model_is_an_arm_at_another_budget(command, study, out)
    _a_part_leaves_the_whole_in_the_table(command, study, out)
    assert "warm-seed0.json: was made with other settings" in capfd.readouterr().err
    (out / "cells" / "warm-seed0.json").unlink()
    assert main([*command, "--arms", "blockwise"]) == 0
    assert "warm-seed0: was trained with other settings" in capfd.readouterr().err


def _check_each_seed(out: Path, rows: dict[str, Any]) -> None:
    each = list(csv.DictReader((out / "seeds.csv").open()))
    assert [(row["arm"], row["seed"], row["steps"]) for row in each] == [("blockwise", "0", "12"), ("warm", "0", "12")]
    assert float(each[1]["loss"]) == pytest.approx(rows["warm"]["loss"])
    assert float(each[1]["reads_its_input"]) == pytest.approx(rows["warm"]["reads_its_input"])
    assert json.loads((out / "quality.json").read_text())["seeds"][1]["rouge1"] == float(each[1]["rouge1"])


def _cells_make_the_table_elsewhere(
    command: list[str], study: Path, out: Path, elsewhere: Path, rows: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """Cells alone, in another folder and with shards at another place, are the study: nothing is trained again."""
    shards = elsewhere / "prepared"
    shutil.copytree(command[command.index("--shards") + 1], shards)
    shutil.copytree(out / "cells", elsewhere / "out" / "cells")
    there = ["bench", "quality", str(study), "--shards", str(shards), "--output", str(elsewhere / "out")]
    assert main(there) == 0
    assert not (elsewhere / "out" / "runs").exists()
    again = json.loads((elsewhere / "out" / "quality.json").read_text())
    for row in again["rows"]:
        assert _roughly(rows[row["arm"]]) == row
    assert again["environment"]["trained_with"][0]["count"] == 3
    assert (out / "curves.csv").read_text() == (elsewhere / "out" / "curves.csv").read_text()
    # No path of the machine travels along.
    assert str(out.parent) not in (out / "cells" / "warm-seed0.json").read_text()
    # Cells of other documents are refused before anything is trained.
    index = json.loads((shards / "train" / "index.json").read_text())
    (shards / "train" / "index.json").write_text(json.dumps(index | {"tokenizer_fingerprint": "another"}))
    assert main(there) == 2
    assert "blockwise-seed0.json: was made from other documents than" in capfd.readouterr().err


def _a_model_is_an_arm_at_another_budget(command: list[str], study: Path, out: Path) -> None:
    study.write_text(yaml.safe_dump(STUDY | {"arms": STUDY["arms"] | {"narrow": {"model_of": "warm", "keep": 4}}}))
    trained = sorted(path.name for path in (out / "runs").iterdir())
    assert main([*command, "--arms", "narrow"]) == 0
    assert sorted(path.name for path in (out / "runs").iterdir()) == trained
    evaluations = out / "runs" / "warm-seed0" / "evaluation"
    kept = [json.loads((evaluations / name / "metrics.json").read_text()) for name in ("test", "test-keep4")]
    assert [found["kept_tokens"] for found in kept] == [8, 4]
    rows = {row["arm"]: row for row in json.loads((out / "quality.json").read_text())["rows"]}
    assert rows["narrow"]["steps"] == rows["warm"]["steps"] == 12
    assert rows["narrow"]["loss"] == pytest.approx(kept[1]["loss"], rel=1e-4)
    assert [rows[arm]["kept_tokens"] for arm in ("warm", "narrow")] == [8, 4]
    study.write_text(yaml.safe_dump(STUDY))


def _roughly(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else pytest.approx(value, rel=1e-4) for key, value in row.items()}


def _a_part_leaves_the_whole_in_the_table(command: list[str], study: Path, out: Path) -> None:
    (out / "runs" / "blockwise-seed0" / "environment.json").unlink()  # as of an earlier version, which made no cells
    (out / "cells" / "blockwise-seed0.json").unlink()
    assert main([*command, "--arms", "blockwise, blockwise", "--seeds", "1,1"]) == 0
    rows = {row["arm"]: row for row in csv.DictReader((out / "quality.csv").open())}
    assert {arm: row["seeds"] for arm, row in rows.items()} == {"blockwise": "2", "warm": "1"}
    text = (out / "quality.md").read_text()
    assert "Arms differ in their seeds" in text
    assert "commit unknown" in text
    # What was trained with other settings than the study has now is no part of it.
    warm = STUDY["arms"]["warm"] | {"model": {"pooling": [{"after_layer": 2, "length": 4}]}}
    study.write_text(yaml.safe_dump(STUDY | {"arms": STUDY["arms"] | {"warm": warm}}))
    main([*command, "--arms", "blockwise"])
    assert {row["arm"] for row in csv.DictReader((out / "seeds.csv").open())} == {"blockwise"}


def _evaluated_loss(run: Path) -> float:
    return float(json.loads((run / "evaluation" / "test" / "metrics.json").read_text())["loss"])

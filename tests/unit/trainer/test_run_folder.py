"""The layout of a run folder, and what is read from it without opening a file."""

import subprocess
import sys
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.trainer.run_folder import EvaluationFolder, RunFolder, require_run


def test_a_run_folder_is_one_that_has_a_configuration(tmp_path):
    with pytest.raises(UserError, match=r"not a run folder \(no config.yaml\); give the folder that"):
        require_run(tmp_path)
    (tmp_path / "config.yaml").touch()
    require_run(tmp_path)


def test_checkpoints_and_attempts_are_found_by_number_and_other_names_passed_over(tmp_path):
    run = RunFolder(tmp_path)
    assert run.checkpoint_steps() == run.attempts() == []
    for name in ("global_step24", "global_step8", "global_step", "best"):
        (run.checkpoints / name).mkdir(parents=True)
    for name in ("attempt-10", "attempt-9", "attempt-x", "lock"):
        (run.launch / name).mkdir(parents=True)
    assert run.checkpoint_steps() == [8, 24]
    assert run.checkpoint(24) == tmp_path / "checkpoints" / "global_step24"
    assert run.attempts() == [9, 10]
    assert run.attempt(9) == tmp_path / "launch" / "attempt-9"


def test_an_evaluation_is_finished_once_its_numbers_are_there(tmp_path):
    run = RunFolder(tmp_path)
    for name in ("test", "validation", "half"):
        run.evaluation(name).root.mkdir(parents=True)
    for name in ("validation", "test"):
        run.evaluation(name).metrics.touch()
    assert [found.root.name for found in run.finished_evaluations()] == ["test", "validation"]
    assert EvaluationFolder("anywhere").metrics == Path("anywhere/metrics.json")


def test_the_layout_is_known_without_torch():
    program = "import sys, transpooler.trainer.run_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_run_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert RunFolder("~/runs/a").metrics == Path("/home/me/runs/a/metrics.jsonl")

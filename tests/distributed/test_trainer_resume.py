"""A run that is killed, preempted or damaged, and resumed, equals the undisturbed one to the bit. Two real ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file

from tests.paths import ROOT
from transpooler.trainer.metrics import TIMED, read_metrics
from transpooler.trainer.run_folder import RunFolder

DEADLINE_S = 120


@pytest.fixture
def settings(tiny_settings):
    # Each step draws one of three budgets: a resumed run must draw what the undisturbed one drew.
    budgets = "model.pooling=[{after_layer: 1, length: 32}, {after_layer: 2, length: [16, 4, 8]}]"
    noisy = ["model.exploration_noise=0.5", "model.dropout=0.1"]
    return [*tiny_settings, budgets, "engine.zero_stage=2", *noisy]


def test_killed_preempted_and_damaged_runs_equal_the_undisturbed_one(settings, tmp_path):
    expected, log = tmp_path / "undisturbed", tmp_path / "log.txt"
    assert forked.train(2, [*settings, f"run={expected}"], log).codes() == [0, 0], log.read_text()

    killed = tmp_path / "killed"
    job = forked.train(2, [*settings, f"run={killed}"], log)
    _wait_for_step(killed, 19)
    job.kill()
    job.codes()
    assert RunFolder(killed).checkpoint_steps()[-1] in (16, 24, 32)
    # What was being written when the power went: neither is taken for good.
    (killed / "checkpoints" / ".incomplete" / "global_step40").mkdir(parents=True, exist_ok=True)
    with open(killed / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 39, "split": "tra')
    assert forked.train(2, [*settings, f"run={killed}"], log).codes() == [0, 0], log.read_text()
    _assert_same(killed, expected)

    preempted = tmp_path / "preempted"
    launcher = _start(settings, preempted)  # the whole command: the signal goes through its launcher
    _wait_for_step(preempted, 10)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(DEADLINE_S) == 75
    stopped_at = RunFolder(preempted).checkpoint_steps()[-1]
    assert 10 <= stopped_at < 40
    assert read_metrics(preempted)[-1]["step"] == stopped_at
    # The newest checkpoint loses a byte: the one before it serves.
    assert len(RunFolder(preempted).checkpoint_steps()) == 2
    path = RunFolder(preempted).checkpoint(stopped_at) / "mp_rank_00_model_states.pt"
    os.truncate(path, path.stat().st_size - 1)
    resumed = forked.train(2, [*settings, f"run={preempted}"], tmp_path / "resumed.txt")
    assert resumed.codes() == [0, 0], resumed.output()
    assert f"global_step{stopped_at} is broken (mp_rank_00_model_states.pt has" in resumed.output()
    _assert_same(preempted, expected)


def _start(settings: list[str], run: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "transpooler", "train", *settings, f"run={run}", "--processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def _wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not any(row["step"] >= step for row in read_metrics(run)):
        assert time.monotonic() < deadline, f"{run} never reached step {step}"
        time.sleep(0.01)


def _assert_same(run: Path, expected: Path) -> None:
    rows, expected_rows = (
        [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(folder)]
        for folder in (run, expected)
    )
    assert rows == expected_rows
    assert len({row["ledger"] for row in rows if row["split"] == "train"}) == 40
    weights, expected_weights = (load_file(folder / "export" / "model.safetensors") for folder in (run, expected))
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        assert torch.equal(weights[name], value), name


def test_a_file_of_the_users_in_the_export_is_told_before_the_first_step(tiny_settings, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log.txt"
    settings = [*tiny_settings, f"run={run}", "train.evaluate_every_steps=1000"]
    assert forked.train(1, [*settings, "train.steps=2"], log).codes() == [0], log.read_text()
    (run / "export" / "thesis.txt").write_text("precious")
    assert forked.train(1, [*settings, "train.steps=2"], log).codes() == [0]  # trained already: nothing is written
    assert forked.train(2, [*settings, "train.steps=4"], log).codes() == [2, 2]
    assert "export: holds thesis.txt, which no export wrote; move it" in log.read_text()
    assert read_metrics(run)[-1]["step"] == 2
    (run / "export" / "thesis.txt").unlink()
    assert forked.train(1, [*settings, "train.steps=4"], log).codes() == [0], log.read_text()
    assert "trained for 4 steps" in (run / "export" / "README.md").read_text()

"""Runs that are killed, at random and at every boundary of writing, end equal to the undisturbed one to the bit."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file

from transpooler.trainer.metrics import TIMED, read_metrics
from transpooler.trainer.run_folder import RunFolder

KILLS = ((1, 9), (2, 6))
"""Ranks of the run, and how often it is killed."""
PHASES = ("step", "evaluation", "checkpoint")


@pytest.fixture
def settings(tiny_settings):
    train = "{steps: 60, checkpoint_every_steps: 4, evaluate_every_steps: 6, log_every_steps: 1}"
    return [*tiny_settings, "model.dropout=0.1", f"train={train}"]


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "kills"), KILLS)
def test_random_kills_leave_no_trace(settings, tmp_path, world_size, kills):
    settings = [*settings, f"engine.zero_stage={world_size}"]
    log, draw = tmp_path / "log.txt", random.Random(world_size)
    expected, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed = forked.train(world_size, [*settings, f"run={expected}"], log)
    marks, hits = tmp_path / "marks", Counter[str]()
    for number in range(kills):
        marks.write_text("")
        job = forked.train(world_size, [*settings, f"run={killed}"], log, partial(write_phases, str(marks)))
        hits[_wait(marks, PHASES[number % 3], 2 + draw.randrange(6), job)] += 1
        time.sleep(draw.uniform(0, 0.01))
        victims = job.processes if number % 2 else job.processes[-1:]
        for process in victims:
            process.kill()
        assert 0 not in job.codes(), job.output()
    assert set(hits) >= set(PHASES)
    assert forked.train(world_size, [*settings, f"run={killed}"], log).codes() == [0] * world_size, log.read_text()
    assert undisturbed.codes() == [0] * world_size
    assert_same(killed, expected)


def test_a_kill_at_every_boundary_of_writing(settings, tmp_path):
    """Each sync, rename and removal of the second checkpoint, and the metrics' file, one kill each."""
    settings = [*settings, "train.steps=6", "train.checkpoint_every_steps=2", "train.keep_last_checkpoints=1"]
    log, expected = tmp_path / "log.txt", tmp_path / "undisturbed"
    assert forked.train(1, [*settings, f"run={expected}"], log).codes() == [0], log.read_text()
    survivors = Counter[int]()
    for boundary in range(200):
        run = tmp_path / f"killed{boundary}"
        job = forked.Job(1, _train_and_die, ([*settings, f"run={run}"], boundary), log)
        (code,) = job.codes()
        if code == 0:
            break
        assert code == -signal.SIGKILL, job.output()
        survivors[max(RunFolder(run).checkpoint_steps(), default=0)] += 1
        assert forked.train(1, [*settings, f"run={run}"], log).codes() == [0], log.read_text()
        assert_same(run, expected)
        shutil.rmtree(run)
    assert boundary > 12
    assert set(survivors) == {2, 4}  # kills before and after the rename


def write_phases(path: str) -> None:
    """In a rank: append each phase of the loop to a file, for the test to know where the run is."""
    from transpooler.trainer.job import Job

    mark, descriptor = Job.mark, os.open(path, os.O_WRONLY | os.O_APPEND)

    def marked(job: Job, phase: str) -> None:
        if job.rank == job.world_size - 1:
            os.write(descriptor, f"{phase}\n".encode())
        mark(job, phase)

    setattr(Job, "mark", marked)  # noqa: B010 (mypy minds an assignment)


def _wait(marks: Path, phase: str, count: int, job: forked.Job) -> str:
    """Until the last rank has entered `phase` for the n-th time; returns the phase that it is in then."""
    deadline = time.monotonic() + forked.DEADLINE_S
    while True:
        seen = marks.read_text().split()
        if seen.count(phase) >= min(count, 2 if phase != "step" else count) and seen[-1] == phase:
            return phase
        assert time.monotonic() < deadline, job.output()
        if not all(process.is_alive() for process in job.processes):
            return "ended"
        time.sleep(0.0005)


def _train_and_die(settings: list[str], boundary: int) -> int:
    """Train, and SIGKILL this process before the boundary-th system call that changes a folder, from step 3 on."""
    from transpooler.launch.train import main
    from transpooler.trainer.job import Job

    counted = {"on": False, "left": boundary}

    def deadly(call):
        def dying(*args, **kwargs):
            if counted["on"]:
                if counted["left"] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                counted["left"] -= 1
            return call(*args, **kwargs)

        return dying

    save = Job.save

    def saved(job: Job) -> None:
        counted["on"] = job.state.step == 4
        save(job)
        counted["on"] = False

    setattr(Job, "save", saved)  # noqa: B010
    for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (torch, "save")):
        setattr(module, name, deadly(getattr(module, name)))
    return main(settings)


def assert_same(run: Path, expected: Path) -> None:
    """Metrics, ledger and exported weights of two runs are equal to the bit."""
    rows, expected_rows = (
        [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(folder)]
        for folder in (run, expected)
    )
    assert json.dumps(rows) == json.dumps(expected_rows)
    assert len({row["ledger"] for row in rows if row["split"] == "train"}) == rows[-1]["step"]
    files = [path.relative_to(expected) for path in (expected / "export").rglob("*.safetensors")]
    assert files
    for path in files:
        weights, expected_weights = load_file(run / path), load_file(expected / path)
        assert weights.keys() == expected_weights.keys()
        for name, value in expected_weights.items():
            assert torch.equal(weights[name], value), name

"""Hung, stopped and dead ranks, values that are not finite, spikes, time limits: with real ranks."""

import json
import os
import shutil
import signal
import time
from functools import partial

import forked
import pytest
import torch

from transpooler.common import STALLED
from transpooler.trainer.config import load_config
from transpooler.trainer.metrics import read_metrics
from transpooler.trainer.run_folder import RunFolder

QUICK = ["guards.watchdog_timeout_s=6", "guards.silent_rank_s=8", "engine.zero_stage=2", "train.log_every_steps=1"]


@pytest.fixture
def settings(tiny_settings):
    train = "{steps: 100000, checkpoint_every_steps: 5, evaluate_every_steps: 0, log_every_steps: 1}"
    return [*tiny_settings, *QUICK, f"train={train}"]


def test_a_dead_rank_ends_the_job(settings, tmp_path):
    run = tmp_path / "run"
    job = forked.train(2, [*settings, f"run={run}"], tmp_path / "log.txt")
    _wait_for_step(run, 6, job)
    job.processes[1].kill()
    assert job.codes(60) == [STALLED, -signal.SIGKILL]
    assert "transpooler: watchdog: rank 1 is gone (" in job.output()
    assert "Traceback" not in job.output()


def test_a_stopped_rank_ends_the_job(settings, tmp_path):
    run = tmp_path / "run"
    job = forked.train(2, [*settings, f"run={run}", "guards.watchdog_timeout_s=600"], tmp_path / "log.txt")
    _wait_for_step(run, 6, job)
    stopped = job.processes[1]
    assert stopped.pid is not None
    os.kill(stopped.pid, signal.SIGSTOP)
    job.processes[0].join(60)
    assert job.processes[0].exitcode == STALLED, job.output()
    assert f"rank 1 (host {os.uname().nodename}, pid {stopped.pid}, last at step" in job.output()
    assert "has given no sign of life for" in job.output()
    (stacks,) = (run / "stacks").glob("step*-rank0.txt")
    assert "all_reduce" in stacks.read_text()
    os.kill(stopped.pid, signal.SIGCONT)
    job.codes(30)


def test_a_hung_rank_is_found_and_named(settings, tmp_path):
    """Rank 1 waits for its next batch for ever; both write their stacks, and rank 0 says who is odd."""
    run = tmp_path / "run"
    job = forked.train(2, [*settings, f"run={run}"], tmp_path / "log.txt", partial(hang_at, 6))
    assert job.codes(60) == [STALLED, STALLED], job.output()
    assert "nothing ended for" in job.output()
    assert "odd one out: rank 1 (step 6, data) while 1 at step 6, step" in job.output()
    stacks = {path.name: path.read_text() for path in (run / "stacks").iterdir()}
    assert stacks.keys() == {"step6-rank0.txt", "step6-rank1.txt"}
    assert "hanging" in stacks["step6-rank1.txt"]
    assert "ledger" in stacks["step6-rank1.txt"]
    assert RunFolder(run).checkpoint_steps() == [5]


def test_stopping_during_an_evaluation_and_by_the_clock(settings, tmp_path):
    """SIGUSR1 to one rank while both evaluate: saved before the evaluation, which the next start makes up for."""
    run, log = tmp_path / "run [a]*? {b}=ü", tmp_path / "log.txt"
    settings = [*settings, "train.evaluate_every_steps=6", "train.steps=12", f"run={run}"]
    job = forked.train(2, settings, log, partial(signal_in_evaluation, 1, signal.SIGUSR1))
    assert job.codes() == [75, 75], job.output()
    assert RunFolder(run).checkpoint_steps() == [5, 6]
    assert json.loads((RunFolder(run).checkpoint(6) / "run.json").read_text())["state"]["evaluation_pending"]
    assert [row["split"] for row in read_metrics(run)] == ["train"] * 6
    assert forked.train(2, settings, log).codes() == [0, 0], log.read_text()
    assert [row["step"] for row in read_metrics(run) if row["split"] == "validation"] == [6, 12]

    timed = [*settings, f"run={tmp_path / 'timed'}", "train.steps=100000", "train.max_time=12s"]
    started = time.monotonic()
    job = forked.train(2, timed, log)
    _wait_for_step(tmp_path / "timed", 1, job)
    shutil.rmtree(tmp_path / "timed" / "stacks")  # somebody tidies up a living run
    assert job.codes() == [75, 75], job.output()
    assert time.monotonic() - started > 12
    assert "train.max_time of 12 s is over: saved step" in job.output()
    rows = read_metrics(tmp_path / "timed")
    assert RunFolder(tmp_path / "timed").checkpoint_steps()[-1] == (rows[-1]["step"] if rows else 0)


@pytest.mark.slow
def test_values_that_are_not_finite_and_spikes_make_no_update(tiny_settings, tmp_path):
    """On one rank alone, at every stage, in fp32 and bf16: no rank updates."""
    kinds = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
    each = []
    for stage, precision in kinds:
        own = [f"engine.zero_stage={stage}", f"engine.precision={precision}", f"run={tmp_path / f'{stage}{precision}'}"]
        each.append([*tiny_settings, *own, "guards.skip_spikes=true"])
    job = forked.Job(2, take_bad_steps, (each,), tmp_path / "log.txt")
    assert job.codes() == [0, 0], job.output()


def take_bad_steps(each: list[list[str]]) -> None:
    """In a rank: a good step, one with NaN on rank 1 alone, a spike, a good one; weights move in the good ones only."""
    from transpooler.trainer.job import prepare_job
    from transpooler.trainer.step import train_step

    for settings in each:
        job = prepare_job(load_config([], settings))
        steps = job.loader.steps(0)
        for kind in ("good", "nan", "spike", "good"):
            before = forked.whole_weights(job)
            hook = None
            if kind == "nan" and job.rank == 1:
                hook = job.engine.module.register_forward_hook(_poison)
            if kind == "spike":
                job.state.losses_seen, job.state.loss_mean, job.state.loss_variance = 1000, 0.1, 1e-4
            result = train_step(job, next(steps), stop=False)
            if hook is not None:
                hook.remove()
            assert result is not None
            assert result.skipped == (kind != "good"), (settings[-1], kind)
            assert result.spike == (kind == "spike"), (settings[-1], kind)
            same = all(torch.equal(before[name], value) for name, value in forked.whole_weights(job).items())
            assert same == (kind != "good"), (settings[-1], kind)
            job.state = type(job.state)(step=job.state.step + 1)
        steps.close()
        if job.metrics is not None:
            job.metrics.close()


def _poison(module, inputs, output):
    output.loss = output.loss * float("nan")
    return output


def hang_at(step: int) -> None:
    """In a rank: rank 1 never gets its batch after so many steps."""
    from transpooler.trainer.train import _Clock

    take_step, seen = _Clock.take_step, []

    def hanging(clock, steps):
        seen.append(1)
        if len(seen) > step and os.environ["RANK"] == "1":
            time.sleep(1000)
        return take_step(clock, steps)

    setattr(_Clock, "take_step", hanging)  # noqa: B010


def signal_in_evaluation(rank: int, number: int) -> None:
    """In a rank: send itself a signal in the first evaluation."""
    from transpooler.trainer.job import Job

    mark = Job.mark

    def marked(job, phase):
        if phase == "evaluation" and job.rank == rank:
            os.kill(os.getpid(), number)
        mark(job, phase)

    setattr(Job, "mark", marked)  # noqa: B010


def _wait_for_step(run, step, job):
    deadline = time.monotonic() + forked.DEADLINE_S
    while not any(row["step"] >= step for row in read_metrics(run)):
        assert time.monotonic() < deadline, job.output()
        assert all(process.is_alive() for process in job.processes), job.output()
        time.sleep(0.01)

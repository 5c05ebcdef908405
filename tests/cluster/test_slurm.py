"""A real SLURM: submit, train, preempt, requeue, finish; time limit; plain srun; what sbatch objects to."""

import signal
import subprocess
import sys

import pytest

from tests.cluster.lab import Lab, wait_for
from tests.cluster.runs import STEPS, Runs

pytestmark = pytest.mark.slow
DEADLINE_S = 300
HELD_FOR_LONG = ("cluster.heartbeat_timeout_s=300", "guards.silent_rank_s=300")
"""So that a stopped rank is waited for."""


def test_preempted_and_requeued_it_equals_the_undisturbed_run(slurm: Lab, runs: Runs) -> None:
    code, output = slurm.run(0, runs.command("slurm", "slurm", "cluster.nodes=2", "cluster.slurm.partition=main"))
    assert code == 0, output
    job = output.split()[-1]
    try:
        runs.wait_for_step("slurm", 4)
        code, output = slurm.run(
            0, ["sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3"]
        )
        assert code == 0, output
        wait_for(
            lambda: any(event["event"] == "finish" for event in runs.events("slurm")), "the preemption", DEADLINE_S
        )
        assert [event["event"] for event in runs.events("slurm")] == ["start", "stop_requested", "end", "finish"]
        assert runs.events("slurm")[-1]["exit_code"] == 75
        stopped_at = runs.step("slurm")
        assert 4 <= stopped_at < STEPS
        wait_for(lambda: _state(slurm, job) == "COMPLETED", "the requeued job", DEADLINE_S)
    finally:
        slurm.run(0, ["scancel", job])
    assert "Restarts=1" in slurm.run(0, ["scontrol", "show", "job", "-o", job])[1]
    (again,) = (event for event in runs.events("slurm")[4:] if event["event"] == "start")
    assert (again["step"], again["ranks"]) == (stopped_at, 2)
    assert again["hosts"] == [slurm.host(1), slurm.host(2)]
    runs.assert_same("slurm")


def test_before_its_time_limit_it_saves_and_comes_back(slurm: Lab, runs: Runs) -> None:
    limit = ("cluster.slurm.time=2m", "cluster.slurm.signal_before_end_s=30")
    code, output = slurm.run(0, runs.command("slurm", "limited", "cluster.nodes=2", *limit, *HELD_FOR_LONG))
    assert code == 0, output
    job = output.split()[-1]
    try:
        runs.wait_for_step("limited", 4)
        assert (
            slurm.signal(2, ["-m", "transpooler.launch.train"], signal.SIGSTOP) == 1
        )  # or it would be done before the limit
        wait_for(lambda: "stop_requested" in _names(runs, "limited"), "SLURM's signal", DEADLINE_S)
        slurm.signal(2, ["-m", "transpooler.launch.train"], signal.SIGCONT)
        wait_for(lambda: _state(slurm, job) == "COMPLETED", "the requeued job", DEADLINE_S)
    finally:
        slurm.run(0, ["scancel", job])
    assert "Restarts=1" in slurm.run(0, ["scontrol", "show", "job", "-o", job])[1]
    assert _names(runs, "limited") == ["start", "stop_requested", "end", "finish", "start", "end", "finish"]
    assert [event["ending"] for event in runs.events("limited") if event["event"] == "end"] == ["preempted", "done"]
    runs.assert_same("limited")


def test_plain_srun_starts_the_same_ranks(slurm: Lab, runs: Runs) -> None:
    command = ["srun", "-N2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", sys.executable, "-m", "transpooler"]
    code, output = slurm.run(0, [*command, "train", *runs.arguments("plain_srun")])
    assert code == 0, output[-3000:]
    runs.assert_same("plain_srun")


def test_a_cancelled_job_is_not_requeued(slurm: Lab, runs: Runs) -> None:
    _, output = slurm.run(0, runs.command("slurm", "cancelled", "cluster.nodes=2"))
    job = output.split()[-1]
    runs.wait_for_step("cancelled", 2)
    slurm.run(0, ["scancel", job])
    wait_for(lambda: _state(slurm, job) in ("CANCELLED", "FAILED"), "the cancellation", DEADLINE_S)
    assert "Restarts=0" in slurm.run(0, ["scontrol", "show", "job", "-o", job])[1]


def test_what_sbatch_objects_to_is_one_line(slurm: Lab, runs: Runs) -> None:
    code, output = slurm.run(0, runs.command("slurm", "refused", "cluster.slurm.partition=none"))
    assert code == 2
    (line,) = output.splitlines()
    assert line.startswith("transpooler: error: ")
    assert "sbatch refuses it: " in line
    assert "partition" in line


def _names(runs: Runs, name: str) -> list[str]:
    return [event["event"] for event in runs.events(name)]


def _state(slurm: Lab, job: str) -> str:
    try:
        output = slurm.run(0, ["scontrol", "show", "job", "-o", job], timeout_s=30)[1]
    except subprocess.TimeoutExpired:
        return ""
    return output.partition("JobState=")[2].partition(" ")[0]

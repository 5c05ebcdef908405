"""Faults on real hosts and processes: the job restarts or ends in time, nothing is lost, the log names the culprit."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.lab import ROOT, Lab, wait_for, why_not
from tests.cluster.runs import Runs

pytestmark = pytest.mark.slow
TRAINING = ["-m", "transpooler.launch.train"]
SHORT = ("guards.watchdog_timeout_s=20", "engine.collective_timeout_s=25")
LONG = ("guards.watchdog_timeout_s=500", "engine.collective_timeout_s=600")
NOTICED_WITHIN_S = 60
"""From the fault to the launcher's word about it (heartbeat_timeout_s is 10, the others as in SHORT)."""


def test_a_killed_rank_a_stopped_process_and_a_cut_cable(cluster: Lab, runs: Runs, hostfile: str) -> None:
    settings = (hostfile, "cluster.interface=eth0", *SHORT, "cluster.host_failures=9")
    launcher = cluster.start(0, runs.command("ssh", "faults", *settings))
    second = cluster.host(2)
    try:
        runs.wait_for_step("faults", 6)
        assert cluster.signal(2, TRAINING, signal.SIGKILL) == 1
        end = _end_of_attempt(runs, "faults", 1)
        assert (end["ending"], end["rank"], end["host"]) == ("crashed", 1, second)
        assert "killed by SIGKILL" in end["reason"]

        runs.wait_for_step("faults", end["step"] + 6)
        assert cluster.signal(2, TRAINING, signal.SIGSTOP) == 1
        end = _end_of_attempt(runs, "faults", 2)
        assert (end["ending"], end["rank"], end["host"]) == ("stopped", 1, second)
        assert "is stopped (SIGSTOP" in end["reason"]

        runs.wait_for_step("faults", end["step"] + 6)
        cluster.cut(2)
        end = _end_of_attempt(runs, "faults", 3)
        cluster.heal(2)
        assert (end["ending"], end["host"]) == ("lost", second)
        assert "unreachable" in end["reason"]
        output, _ = launcher.communicate(timeout=240)
    finally:
        cluster.heal(2)
        launcher.kill()
    assert launcher.returncode == 0, output[-3000:]
    assert [event["ending"] for event in runs.events("faults") if event["event"] == "end"][-1] == "done"
    runs.assert_same("faults")


def test_hosts_that_share_documents_lose_one(cluster: Lab, runs: Runs, hostfile: str) -> None:
    """Each reads half of the blocks of every document; a rank is killed. The run alone has neither hosts nor kills."""
    shared = ("engine.context_parallel_size=2", "cluster.max_restarts=3", *SHORT)
    alone = runs.command("local", "shared-alone", "cluster.processes_per_node=2", *shared)
    finished = subprocess.run(alone, cwd=ROOT, env=cluster.environment(), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    launcher = cluster.start(0, runs.command("ssh", "shared", hostfile, "cluster.interface=eth0", *shared))
    try:
        runs.wait_for_step("shared", 6)
        assert cluster.signal(2, TRAINING, signal.SIGKILL) == 1
        assert _end_of_attempt(runs, "shared", 1)["ending"] == "crashed"
        output, _ = launcher.communicate(timeout=240)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, output[-3000:]
    runs.assert_same("shared", "shared-alone")
    rows, apart = runs.train_rows("shared"), runs.train_rows("undisturbed")
    assert [row["ledger"] for row in rows] == [row["ledger"] for row in apart], "the order of documents depends on P"
    assert all(row["context_mib"] > 0 for row in rows)


def test_a_host_without_power_is_waited_for(cluster: Lab, runs: Runs, hostfile: str) -> None:
    launcher = cluster.start(0, runs.command("openmpi", "power", hostfile, *LONG))
    try:
        runs.wait_for_step("power", 6)
        cluster.crash(2)
        end = _end_of_attempt(runs, "power", 1)
        assert (end["ending"], end["host"]) == ("lost", cluster.host(2))
        _wait_for_event(runs, "power", "host_failed")
        cluster.up()
        output, _ = launcher.communicate(timeout=240)
    finally:
        cluster.up()
        launcher.kill()
    assert launcher.returncode == 0, output[-3000:]
    runs.assert_same("power")


def test_an_elastic_job_goes_on_without_a_host(cluster: Lab, runs: Runs, hostfile: str) -> None:
    more = (hostfile, "cluster.elastic=true", "cluster.host_failures=2")
    launcher = cluster.start(0, runs.command("torchrun", "elastic", *more))
    try:
        runs.wait_for_step("elastic", 6)
        cluster.kill(2)
        output, _ = launcher.communicate(timeout=300)
    finally:
        cluster.up()
        launcher.kill()
    assert launcher.returncode == 0, output[-3000:]
    (left,) = [event for event in runs.events("elastic") if event["event"] == "leave_out"]
    assert (left["left_out"], left["ranks"]) == ([cluster.host(2)], 1)
    rows, expected = (runs.train_rows(name) for name in ("elastic", "undisturbed"))
    assert [row["ledger"] for row in rows] == [row["ledger"] for row in expected], "the same global batches"
    assert rows[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.05)


def test_a_slow_link_changes_nothing(cluster: Lab, runs: Runs, hostfile: str) -> None:
    cluster.slow(2)
    try:
        code, output = cluster.run(0, runs.command("torchrun", "slow", hostfile), timeout_s=400)
    finally:
        cluster.fast(2)
    assert code == 0, output[-3000:]
    runs.assert_same("slow")


def test_a_full_disk_ends_the_job_and_loses_nothing(runs: Runs, tmp_path: Path) -> None:
    if reason := why_not(("mount", "umount")):
        pytest.skip(reason)
    name, disk = "disk", runs.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)], check=True)
    try:
        command = runs.command("local", name, "cluster.processes_per_node=2")
        launcher = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        runs.wait_for_step(name, 6)
        filler, started = disk / "filler", time.monotonic()
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M"], stderr=subprocess.DEVNULL, check=False)
        _, errors = launcher.communicate(timeout=NOTICED_WITHIN_S)
        assert time.monotonic() - started < NOTICED_WITHIN_S
        assert launcher.returncode == 2, errors[-3000:]
        assert "cannot write" in errors
        assert "No space left" in errors or "free space" in errors
        filler.unlink()
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr[-3000:]
        runs.assert_same(name)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_signal_to_the_launcher_saves_on_all_hosts(cluster: Lab, runs: Runs, hostfile: str) -> None:
    command = runs.command("mpich", "signalled", hostfile)
    launcher = cluster.start(0, command)
    runs.wait_for_step("signalled", 6)
    os.kill(_inner(launcher), signal.SIGTERM)
    output, _ = launcher.communicate(timeout=NOTICED_WITHIN_S)
    assert launcher.returncode == 75, output[-3000:]
    names = [event["event"] for event in runs.events("signalled")]
    assert names == ["start", "stop_requested", "end", "finish"]
    code, output = cluster.run(0, command)
    assert code == 0, output[-3000:]
    runs.assert_same("signalled")


def _inner(launcher: subprocess.Popen) -> int:
    """The launcher itself, below the shell and nsenter that put it on its host."""
    import psutil

    below = psutil.Process(launcher.pid).children(recursive=True)
    return next(each.pid for each in below if each.cmdline()[1:4] == ["-m", "transpooler", "launch"])


def _end_of_attempt(runs: Runs, name: str, number: int) -> dict:
    """The launcher's word about the end of an attempt, which must come in time."""

    def found() -> list[dict]:
        return [event for event in runs.events(name) if event["event"] == "end" and event["attempt"] == number]

    wait_for(found, f"the end of attempt {number}", NOTICED_WITHIN_S)
    return found()[0]


def _wait_for_event(runs: Runs, name: str, event: str) -> None:
    wait_for(lambda: any(line["event"] == event for line in runs.events(name)), f"event {event}", NOTICED_WITHIN_S)

"""The watchers of a rank (launch.ranks.watcher) and an attempt (launch.cluster.attempt): every way to end, for real.

The ranks are small scripts here; tests/cluster has real training on real hosts.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.paths import ROOT
from transpooler.launch.cluster.attempt import Attempt, Outcome
from transpooler.launch.cluster.attempt_plan import AttemptPlan
from transpooler.launch.cluster.hosts import Host
from transpooler.trainer.config.cluster import ClusterConfig
from transpooler.trainer.run_folder import RunFolder

WRAPPER = (
    "import sys, transpooler.launch.ranks.watcher as rank\n"
    "rank.RANK_MODULE, rank.HEARTBEAT_EVERY_S = 'stub_rank', 0.1\n"
    "sys.exit(rank.main(sys.argv[1:]))"
)
WAIT = "while True: time.sleep(0.05)"
SAVE = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))"


class Job:
    """Two ranks whose scripts are given, started by a shell as their engine."""

    def __init__(self, folder: Path, *scripts: str, **cluster: float) -> None:
        self.run = folder / "run"
        lines = [f"if rank == {number}:\n    {script}" for number, script in enumerate(scripts)]
        code = "import os, signal, sys, time\nrank = int(os.environ['RANK'])\nprint('starts', flush=True)\n"
        (folder / "stub_rank.py").write_text(code + "\n".join(lines) + "\n")
        start = " ".join(
            f"RANK={number} {shlex.join([sys.executable, '-c', WRAPPER])} & pids+=($!);"
            for number in range(len(scripts))
        )
        attempt = self.run / "launch" / "attempt-1"
        variables = {
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "TRANSPOOLER_ATTEMPT": str(attempt),
            "TRANSPOOLER_LOGS": str(self.run / "logs"),
        }
        plan = AttemptPlan(
            target="test",
            hosts=(Host("here", len(scripts)),),
            command=(
                "bash",
                "-c",
                f"{start} code=0; for pid in ${{pids[@]}}; do wait $pid || code=$?; done; exit $code",
            ),
            files={attempt / "rank.sh": ""},
            variables={},
            directory=folder,
            engine_variables=variables,
        )
        limits = {"heartbeat_timeout_s": 2.0, "hang_timeout_s": 30.0, "stop_grace_s": 10.0} | cluster
        self.attempt = Attempt(plan, attempt, RunFolder(self.run), ClusterConfig(**limits))  # type: ignore[arg-type]

    def outcome(self, meanwhile=lambda job: None) -> Outcome:
        """Run to the end; `meanwhile` acts when both ranks have started."""

        def act() -> None:
            self.wait_until_started()
            meanwhile(self)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        found = self.attempt.execute()
        thread.join(5)
        return found

    def wait_until_started(self) -> None:
        deadline = time.monotonic() + 30
        logs = self.run / "logs"
        while sum("starts" in path.read_text() for path in logs.glob("rank-*.log")) < self.attempt.plan.hosts[0].slots:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # signs of life

    def process(self, rank: int) -> psutil.Process:
        facts = json.loads((self.attempt.folder / f"rank-{rank}.json").read_text())
        return psutil.Process(facts["pid"])


def test_done_with_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path, "print('hello')", "print('there')")
    assert job.outcome() == Outcome("done")
    assert (job.run / "logs" / "rank-1.log").read_text().splitlines()[1:] == ["starts", "there"]
    merged = (job.run / "logs" / "all.log").read_text()
    assert f"[rank 0 {os.uname().nodename}] hello\n" in merged
    assert f"[rank 1 {os.uname().nodename}] there\n" in merged
    assert "] hello\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("second", "ending", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "crashed", "killed by SIGKILL"),
        ("sys.exit('it broke')", "crashed", "exit code 1: it broke"),
        ("print('transpooler: error: train.stepz: unknown key'); sys.exit(2)", "mistake", "train.stepz: unknown key"),
    ],
)
def test_the_culprit_is_named(tmp_path: Path, second: str, ending: str, reason: str) -> None:
    job = Job(
        tmp_path,
        f"time.sleep(0.5); sys.exit('Connection closed by peer') if {ending != 'mistake'} else time.sleep(9)",
        second,
    )
    outcome = job.outcome(lambda job: job.process(0).kill() if ending == "mistake" else None)
    assert (outcome.ending, outcome.rank) == (ending, 1)
    assert reason in outcome.reason


def test_a_stopped_process_is_found(tmp_path: Path) -> None:
    outcome = Job(tmp_path, WAIT, WAIT).outcome(lambda job: job.process(1).suspend())
    assert (outcome.ending, outcome.rank) == ("stopped", 1)


def test_a_stopped_process_is_found_when_its_peers_give_up_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transpooler.launch.cluster.attempt.END_TOGETHER_S", 1.0)
    job = Job(tmp_path, "time.sleep(2); sys.exit(70)", WAIT, heartbeat_timeout_s=60.0)
    outcome = job.outcome(lambda job: job.process(1).suspend())
    assert (outcome.ending, outcome.rank) == ("stopped", 1)


def test_a_host_that_dies_is_lost_although_its_peer_speaks_first(tmp_path: Path) -> None:
    def die(job: Job) -> None:
        rank = job.process(1)
        for process in (rank.parent(), rank, job.process(0)):
            assert process is not None
            process.send_signal(signal.SIGKILL if process.pid != job.process(0).pid else signal.SIGTERM)

    outcome = Job(
        tmp_path, "signal.signal(15, lambda *_: sys.exit('Connection reset by peer')); " + "time.sleep(60)", WAIT
    ).outcome(die)
    assert (outcome.ending, outcome.rank) == ("lost", 1)


def test_no_progress_is_a_hang(tmp_path: Path) -> None:
    outcome = Job(tmp_path, WAIT, WAIT, hang_timeout_s=2.0).outcome()
    assert outcome.ending == "hung"
    assert "rank 1: " in outcome.reason


def test_a_request_to_stop_reaches_the_ranks(tmp_path: Path) -> None:
    script = f"{SAVE}; time.sleep(60)"
    outcome = Job(tmp_path, script, script).outcome(lambda job: job.attempt.request_stop())
    assert (outcome.ending, outcome.exit_code) == ("preempted", 75)


def test_ranks_that_do_not_save_in_time_are_ended(tmp_path: Path) -> None:
    script = "signal.signal(signal.SIGUSR1, signal.SIG_IGN); time.sleep(60)"
    outcome = Job(tmp_path, script, script, stop_grace_s=1.0).outcome(lambda job: job.attempt.request_stop())
    assert (outcome.ending, outcome.rank) == ("stopped", None)
    assert "cluster.stop_grace_s = 1 s" in outcome.reason


def test_a_rank_ends_with_what_watches_it(tmp_path: Path) -> None:
    outcome = Job(tmp_path, "time.sleep(1.5)", WAIT).outcome(lambda job: _watcher(job, 1).kill())
    assert (outcome.ending, outcome.rank) == ("lost", 1)


def test_a_rank_ends_with_its_supervisor_on_whatever_host_and_gets_signals_when_it_listens(tmp_path: Path) -> None:
    lock = RunFolder(tmp_path / "run").lock
    lock.parent.mkdir()
    lock.write_text('{"token": "first", "machine": "elsewhere"}')
    script = f"time.sleep(1.0); {SAVE}; time.sleep(60)"
    assert Job(tmp_path, script, script).outcome(lambda job: job.attempt.request_stop()).ending == "preempted"
    outcome = Job(tmp_path, WAIT, WAIT).outcome(lambda _: lock.write_text('{"token": "second"}'))
    assert (outcome.ending, outcome.reason) == ("crashed", "killed by SIGKILL (out of memory?)")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpooler.launch.cluster.attempt.END_TOGETHER_S", 1.0)
    job = Job(tmp_path, WAIT, "time.sleep(1); sys.exit(3)")
    left: list[psutil.Process] = []
    job.outcome(lambda job: left.append(job.process(0)))
    assert not left[0].is_running()


def test_signs_of_life_that_cannot_be_written_do_not_end_the_rank(tmp_path: Path) -> None:
    (tmp_path / "stub_rank.py").write_text("import time; time.sleep(0.5); print('done')")
    (tmp_path / "file").touch()
    variables = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "TRANSPOOLER_ATTEMPT": str(tmp_path / "file" / "x")}
    command = [sys.executable, "-c", WRAPPER]
    finished = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.endswith("] done\n")


def _watcher(job: Job, rank: int) -> psutil.Process:
    found = job.process(rank).parent()
    assert found is not None
    return found

"""The lock of a run: with real processes on this machine; other machines are played by what they would write."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from transpooler.common import DiskFullError, UserError
from transpooler.trainer.guards import run_lock
from transpooler.trainer.guards.run_lock import TOKEN, Holder, hold

HOLD = (
    "import os, subprocess, sys, time\n"
    "from pathlib import Path\n"
    "from transpooler.trainer.guards import run_lock\n"
    "run_lock.BEAT_EVERY_S = 0.05\n"
    "with run_lock.hold(Path(sys.argv[1]), 'choose another'):\n"
    "    child = subprocess.Popen([sys.executable, '-c', *sys.argv[2:]]) if sys.argv[2:] else None\n"
    "    print(os.getpid(), flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def lock(tmp_path, monkeypatch) -> Path:
    for name in (TOKEN, "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_lock, "LOOK_EVERY_S", 0.02)
    return tmp_path / "runs" / "a" / "lock"


def start(lock: Path, *child: str) -> subprocess.Popen[str]:
    """A process that holds the lock, when it does."""
    command = [sys.executable, "-c", HOLD, str(lock), *child]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline(), process.communicate()[1]
    return process


def write(lock: Path, **facts: object) -> None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    known = {"token": "theirs", "host": "elsewhere", "pid": 7, "since": "noon", "machine": "elsewhere", "start": "1"}
    lock.write_text(json.dumps(known | facts))


def test_a_second_start_is_told_who_holds_the_run_and_a_killed_holder_is_replaced_at_once(lock):
    first = start(lock)
    message = rf"a: is in use by host {os.uname().nodename}, process {first.pid}, since \d{{4}}-.*choose run="
    with pytest.raises(UserError, match=message), hold(lock, "choose run=..."):
        pass
    first.kill()  # not waited for: what is left of it must not count as alive
    deadline = time.monotonic() + 10
    while run_lock.start_of(first.pid):
        assert time.monotonic() < deadline
    with hold(lock, "choose run=..."):
        held = Holder.of(lock)
        assert held is not None
        assert held.facts["pid"] == os.getpid()
    assert os.listdir(lock.parent) == []
    first.communicate()


def test_folders_that_were_made_for_the_lock_alone_go_with_it(lock):
    with hold(lock, ""):
        assert os.listdir(lock.parent) == ["lock"]
    assert not lock.parent.parent.exists()


@pytest.mark.parametrize("limit", [10, 1000])
def test_a_full_disk_is_told_with_the_folder_and_leaves_nothing(lock, tmp_path, limit):
    """The lock itself does not fit, or what is written under it by a file's descriptor, which knows no name."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        expected = f"^{re.escape(str(lock.parent))}: a file cannot be written: File too large; free space"
        with pytest.raises(DiskFullError, match=expected), hold(lock, ""), tempfile.TemporaryFile(buffering=0) as file:
            file.writelines([b"x" * 1000] * 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [None, "", "[]"])
def test_the_lock_of_another_host_is_taken_over_after_it_was_silent_for_long(lock, monkeypatch, content):
    monkeypatch.setattr(run_lock, "SILENT_AFTER_S", 0.3)
    write(lock, start=run_lock.start_of(os.getpid()), pid=os.getpid())
    if content is not None:  # whoever wrote it was killed, or its disk was full
        lock.write_text(content)
    before = time.monotonic()
    with hold(lock, ""):
        assert time.monotonic() - before > 0.3


def test_the_lock_of_another_host_that_gives_signs_of_life_is_kept(lock):
    write(lock)
    threading.Timer(0.1, os.utime, [lock]).start()
    with pytest.raises(UserError, match="in use by host elsewhere, process 7, since noon"), hold(lock, ""):
        pass
    assert json.loads(lock.read_text())["token"] == "theirs"


def test_a_process_that_is_hidden_from_this_user_counts_by_its_signs_of_life(lock, monkeypatch):
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)  # as hidepid does to others' processes; the tests run as root
    monkeypatch.setattr(run_lock, "start_of", lambda pid: None)
    write(lock, machine=run_lock._machine())
    threading.Timer(0.1, os.utime, [lock]).start()
    with pytest.raises(UserError, match="in use by"), hold(lock, ""):
        pass


def test_of_many_that_find_a_dead_lock_one_gets_it(lock, monkeypatch):
    write(lock, machine=run_lock._machine())
    won, lost = [], []

    def take() -> None:
        try:
            won.append(run_lock._take(lock, ""))
        except UserError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = Holder.of(lock)
    assert held is not None
    assert [facts["token"] for facts in won] == [held.token]
    assert len(lost) == 7
    assert os.listdir(lock.parent) == ["lock"]


def test_what_a_holder_starts_is_of_its_job_and_ends_with_it(lock):
    child = (
        "import sys, time; from pathlib import Path; from transpooler.trainer.guards.run_lock import hold\n"
        "with hold(Path(sys.argv[1]), ''):\n    print('within', flush=True)\n    time.sleep(60)\n"
    )
    first = start(lock, child, str(lock))
    assert first.stdout is not None
    assert first.stdout.readline() == "within\n"
    first.send_signal(signal.SIGKILL)
    assert first.stdout.read() == "", "the end of the pipe, which the child holds, too"
    first.wait()


def test_a_child_whose_launcher_has_gone_does_not_start(lock, monkeypatch):
    write(lock, machine=run_lock._machine(), token="mine")
    monkeypatch.setenv(TOKEN, "mine")
    with pytest.raises(UserError, match="the launcher of this process has ended"), hold(lock, ""):
        pass


def test_a_holder_that_was_replaced_ends_and_one_whose_lock_was_tidied_away_takes_it_again(lock):
    first = start(lock)
    lock.unlink()
    while not lock.exists():
        time.sleep(0.01)
    other = lock.with_name("other")
    write(other)
    os.replace(other, lock)
    _, errors = first.communicate(timeout=20)
    assert first.returncode == 2
    assert re.fullmatch(r"transpooler: error: .*/a: was taken over by host elsewhere, .*\n", errors)
    assert json.loads(lock.read_text())["token"] == "theirs"


def test_ranks_of_an_engine_by_hand_leave_the_lock_to_rank_0(lock, monkeypatch):
    write(lock)
    monkeypatch.setenv("RANK", "1")
    with hold(lock, ""):
        assert json.loads(lock.read_text())["token"] == "theirs"


def test_a_folder_that_cannot_be_made_is_a_user_error(lock):
    lock.parent.parent.symlink_to("nowhere")
    with pytest.raises(UserError, match="cannot make this folder"), hold(lock, "choose run=..."):
        pass

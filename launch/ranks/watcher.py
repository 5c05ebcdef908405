"""What an engine starts once per rank; it runs and watches `transpooler.launch.train`.

    python -m transpooler.launch.ranks.watcher CONFIG... key=value...

It does the same under every engine: it finds the rank's identity (launch.ranks.identity), takes a share of the cores,
writes the rank's log, prefixes its lines on standard output, gives signs of life to the supervisor and stops on its
word. It imports nothing heavy and needs some MiB. These files lie on the file system of the run folder:

RUN/logs/rank-<N>.log                 what the rank printed, over all attempts
RUN/launch/attempt-<N>/rank-<N>.json  sign of life: host, pid, state of the process; at the end its exit code
RUN/launch/attempt-<N>/stop, kill     written by the supervisor: save and exit with 75; end at once
"""

import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from transpooler.common import STOP_SIGNALS, USER_ERROR, UserError, atomic_write, die_with_parent, listens_to
from transpooler.launch.exits import print_user_error
from transpooler.launch.ranks.identity import rank_identity
from transpooler.trainer.guards.run_lock import Holder
from transpooler.trainer.run_folder import RunFolder

ATTEMPT, LOGS, BIND_CORES = "TRANSPOOLER_ATTEMPT", "TRANSPOOLER_LOGS", "TRANSPOOLER_BIND_CORES"
RANK_MODULE = "transpooler.launch.train"
HEARTBEAT_EVERY_S = 2.0
RANKS_AT_THAT_RATE = 200
"""Larger jobs beat more slowly, to spare the shared file system."""
POLL_EVERY_S = 0.2
LAST_LINES = 8


def main(arguments: Sequence[str]) -> int:
    """Run the rank to its end; its exit code (128 + N where signal N killed it)."""
    try:
        os.environ.update(rank_identity(os.environ))
    except UserError as error:
        print_user_error(error)
        return USER_ERROR
    if os.environ.get(BIND_CORES) == "1":
        bind_cores(
            int(os.environ.get("LOCAL_RANK", "0")),
            int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE", "1")),
        )
    return Watcher(arguments).run()


def bind_cores(local_rank: int, local_size: int) -> None:
    """Bind this process to its share of the host's cores, unless the engine has bound it already."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < (os.cpu_count() or 1) or len(cores) < local_size:
        return
    share = cores[local_rank * len(cores) // local_size : (local_rank + 1) * len(cores) // local_size]
    os.sched_setaffinity(0, share)
    os.environ.setdefault("OMP_NUM_THREADS", str(len(share)))


class Watcher:
    """Runs the training process of this rank, with its log and its signs of life."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.number, self.host = int(os.environ.get("RANK", "0")), socket.gethostname()
        self.attempt = Path(os.environ[ATTEMPT]) if ATTEMPT in os.environ else None
        self.log = self._open_log()
        self.last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self.stop_signal = ""
        """Name of the signal that asked the rank to end, if one did."""
        self.owed_signal: int | None = None
        """The signal that the rank has yet to get, because it does not listen yet."""
        self.beats = 0
        # The handlers stay: a late signal must not end this process before it has returned the rank's code.
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, _: self._forward(number))
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: self._forward(signal.SIGTERM))
        self.owner = None if self.attempt is None else Holder.of(RunFolder(self.attempt.parents[1]).lock)
        """The supervisor, whose end is the rank's."""
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", RANK_MODULE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )

    def run(self) -> int:
        """Copy output and forward signals until the process ends; returns its exit code."""
        assert self.process.stdout is not None
        copier = threading.Thread(target=self._copy, args=(self.process.stdout,), daemon=True)
        copier.start()
        every_s = HEARTBEAT_EVERY_S * max(1.0, int(os.environ.get("WORLD_SIZE", "1")) / RANKS_AT_THAT_RATE)
        next_beat = 0.0
        while self.process.poll() is None:
            if time.monotonic() >= next_beat:
                self._beat()
                if self.owner is not None and self.owner.is_alive() is False:
                    self.process.kill()
                next_beat = time.monotonic() + every_s
            self._obey()
            try:
                self.process.wait(POLL_EVERY_S)
            except subprocess.TimeoutExpired:
                continue
        copier.join(timeout=5.0)
        code = self.process.returncode
        self._beat(code)
        return code if code >= 0 else 128 - code

    def _copy(self, source: IO[bytes]) -> None:
        prefix = f"[rank {self.number} {self.host}] "
        for raw in source:
            line = raw.decode(errors="replace")
            self.last_lines.append(line.rstrip())
            for file, text in ((self.log, line), (sys.stdout, prefix + line)):
                try:
                    if file is not None:
                        file.write(text)
                        file.flush()
                except (OSError, ValueError):  # the engine has ended, or the disk is full: the rank continues
                    continue

    def _beat(self, code: int | None = None) -> None:
        if self.attempt is None:
            return
        self.beats += 1
        facts: dict[str, Any] = {"rank": self.number, "host": self.host, "pid": self.process.pid, "beat": self.beats}
        facts |= {"state": _state_of(self.process.pid), "stop_signal": self.stop_signal}
        if code is not None:
            facts |= {"exit": code, "ended": time.time(), "last_lines": list(self.last_lines)}
        # A full disk must not end the rank: its exit still shows in the engine's output and code.
        path = self.attempt / f"rank-{self.number}.json"
        with contextlib.suppress(UserError, OSError), atomic_write(path, durable=False) as file:
            json.dump(facts, file)

    def _obey(self) -> None:
        if self.owed_signal is not None and listens_to(self.process.pid, self.owed_signal):
            self.process.send_signal(self.owed_signal)
            self.owed_signal = None
        if self.attempt is None:
            return
        if (self.attempt / "kill").exists():
            self.process.kill()
        elif not self.stop_signal and (self.attempt / "stop").exists():
            self._forward(signal.SIGUSR1)

    def _forward(self, number: int) -> None:
        self.stop_signal = self.stop_signal or signal.Signals(number).name
        self.owed_signal = number
        if number == signal.SIGTERM and hasattr(self, "process"):
            self._beat()  # engines kill soon after; record that the end was ordered

    def _open_log(self) -> IO[str] | None:
        if LOGS not in os.environ:
            return None
        try:
            Path(os.environ[LOGS]).mkdir(parents=True, exist_ok=True)
            file = open(Path(os.environ[LOGS]) / f"rank-{self.number}.log", "a", encoding="utf-8")  # noqa: SIM115
            file.write(
                f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {self.attempt and self.attempt.name} on {self.host}\n"
            )
        except OSError as error:
            print(f"transpooler: no log file of rank {self.number}: {error}", file=sys.stderr)
            return None
        return file


def _state_of(pid: int) -> str:
    """State of a process in psutil's words: running, sleeping, disk-sleep, stopped, zombie, ..."""
    import psutil

    try:
        return psutil.Process(pid).status()
    except psutil.Error:
        return psutil.STATUS_DEAD


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

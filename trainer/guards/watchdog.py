"""A thread in every rank that ends a job which hangs, and says why.

It acts when no step, evaluation batch or checkpoint ended for `timeout_s`, or when a rank gave no sign of life for
`silent_after_s` (it was killed unnoticed or stopped, or its host is gone). Then every rank that can writes the stacks
of all its threads to RUN/stacks/, rank 0 names the odd rank if there is one, and the process exits with code 70, so
that launcher, scheduler or supervisor can start the job again.

The ranks give signs of life through a key-value store, over a connection of the watchdog's own; rank 0 reads those of
all ranks, the others that of rank 0 alone, so that the traffic stays small. A stack dump in C backs the thread up for a
process that never releases the interpreter's lock.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch

from transpooler.common import STALLED, list_some, one_line
from transpooler.trainer.config.train import GuardsConfig
from transpooler.trainer.run_folder import RunFolder

BEAT_EVERY_S = 2.0
GRACE_S = 5.0
"""Time for the other ranks to see the alarm and write their stacks."""
SHOWN_RANKS = 8
"""Of those that are gone: a host that fails takes many with it."""
BACKUP_S = 60.0
"""The dump in C comes this much later than the thread's."""
STORE_TIMEOUT_S = 5.0
FIRST_STEP_S = 600.0
"""The first step may take this long, whatever the time-out: it compiles, and reads from cold disks."""
ALARM = "alarm"


@dataclass
class _Peer:
    """What this rank knows of another."""

    sign: str = ""
    since: float = 0.0
    """This rank's clock when the sign last changed."""


class Watchdog:
    """Watches one run; call `mark` whenever something ended. A context manager, which all ranks enter together."""

    def __init__(self, run: Path, *, timeout_s: float, silent_after_s: float) -> None:
        self.run, self.timeout_s, self.silent_after_s = run, timeout_s, silent_after_s
        self._limit_s = max(timeout_s, FIRST_STEP_S)
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._interval_s = min(BEAT_EVERY_S, timeout_s / 5, silent_after_s / 5)
        self._beats, self._position, self._ledger = 0, (0, "set-up"), ""
        self._last_mark = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._peers: dict[int, _Peer] = {}
        self._store: torch.distributed.Store | None = None
        self._store_failed_at = -STORE_TIMEOUT_S
        self._backup: IO[str] | None = None

    def mark(self, step: int, phase: str, ledger: str = "") -> None:
        """Something ended at `step`, and `phase` begins."""
        if self._position[1] == "step":
            self._limit_s = self.timeout_s  # one step has ended
        self._position, self._ledger, self._last_mark = (step, phase), ledger or self._ledger, time.monotonic()
        if self._backup is not None:
            faulthandler.dump_traceback_later(self._limit_s + BACKUP_S, file=self._backup, exit=True)

    def __enter__(self) -> "Watchdog":
        nonce = [time.time_ns()]  # the store may outlive this start of the job, with an old alarm in it
        torch.distributed.broadcast_object_list(nonce)
        self._store = _connect_store(f"watchdog/{nonce[0]}") if self.world_size > 1 else None
        self._backup = self._stack_file("late")
        now = time.monotonic()
        watched = range(1, self.world_size) if self.rank == 0 else [0]
        self._peers = {rank: _Peer(since=now) for rank in watched} if self._store is not None else {}
        self.mark(*self._position)
        self._give_sign()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._cancel_backup()
        self._thread.join()

    def report_lost_connection(self, error: BaseException) -> None:
        """End this process because a collective failed; say which ranks are gone, if they can be found."""
        self._write(f"{self.rank}/lost", "1")
        time.sleep(GRACE_S)
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        gone = [rank for rank in others if not self._read(f"{rank}/lost")] if self._store_answers() else [0]
        who = f"rank {list_some(gone, SHOWN_RANKS)} is gone" if gone else "another rank was gone for a while"
        self._end(f"{who} ({str(error).splitlines()[0][:160]})", tell=self.rank == 0 or 0 in gone)

    def _cancel_backup(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        backup, self._backup = self._backup, None
        if backup is not None:
            with suppress(OSError):  # somebody has tidied up
                backup.close()
                if Path(backup.name).stat().st_size == 0:
                    Path(backup.name).unlink()

    def _give_sign(self) -> None:
        """Give a sign of life to the other ranks."""
        self._write(str(self.rank), json.dumps([self._beats, *self._position, socket.gethostname(), os.getpid()]))

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self._interval_s):
            now = time.monotonic()
            if now - before > self._interval_s + self.silent_after_s / 2:
                self._forgive(now)  # this process itself was stopped (a suspended job): the others may have been, too
            self._beats += 1
            reason = self._own_problem(now) or self._peers_problem()
            if reason is not None and not self._stop.is_set():
                self._dump_and_end(reason)
            before = time.monotonic()

    def _forgive(self, now: float) -> None:
        self._last_mark = now
        for peer in self._peers.values():
            peer.since = now

    def _own_problem(self, now: float) -> str | None:
        step, phase = self._position
        if now - self._last_mark > self._limit_s:
            return f"nothing ended for {now - self._last_mark:.0f} s on rank {self.rank}, at step {step} in {phase}"
        return None

    def _peers_problem(self) -> str | None:
        """An alarm that another rank raised, or a rank that gives no sign of life."""
        if self._store is None:
            return None
        self._give_sign()
        alarm = self._read(ALARM)
        if alarm:
            return alarm
        now = time.monotonic()
        for rank, peer in self._peers.items():
            sign = self._read(str(rank))
            if sign is not None and sign != peer.sign:
                peer.sign, peer.since = sign, now
            elif now - peer.since > self.silent_after_s:
                return f"{_describe(rank, peer.sign)} has given no sign of life for {now - peer.since:.0f} s"
        return None

    def _dump_and_end(self, reason: str) -> None:
        """Raise the alarm for the other ranks, write the stacks, name the odd rank, end."""
        self._write(ALARM, reason, unless_there=True)
        self._dump(reason)
        time.sleep(GRACE_S)
        self._end(reason, tell=self.rank == 0 or not self._read(ALARM))

    def _end(self, reason: str, *, tell: bool) -> None:
        if tell:
            positions = {self.rank: self._position}
            for rank in range(self.world_size):
                sign = self._read(str(rank)) if rank != self.rank else None
                if sign:
                    positions[rank] = (json.loads(sign)[1], json.loads(sign)[2])
            odd = odd_ranks(positions)
            hint = f"; odd one out: {odd}" if odd else ""
            stacks = one_line(f"stacks in {RunFolder(self.run).stacks}")
            print(
                f"transpooler: watchdog: {reason}{hint}; {stacks}; ending with code "
                f"{STALLED}, start the same command again to continue from the newest checkpoint",
                file=sys.stderr,
                flush=True,
            )
        self._cancel_backup()
        os._exit(STALLED)

    def _dump(self, reason: str) -> None:
        step, phase = self._position
        with suppress(OSError), self._stack_file(f"step{step}") as file:  # a full disk must not keep the job hanging
            file.write(
                f"rank {self.rank} of {self.world_size}, host {socket.gethostname()}, pid {os.getpid()}\n"
                f"reason: {reason}\nposition: step {step}, {phase}; ledger {self._ledger or '(none yet)'}\n\n"
            )
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)

    def _stack_file(self, what: str) -> IO[str]:
        folder = RunFolder(self.run).stacks
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / f"{what}-rank{self.rank}.txt", "w", encoding="utf-8")

    def _store_answers(self) -> bool:
        return self._ask(lambda store: store.check([ALARM])) is not None

    def _write(self, key: str, value: str, *, unless_there: bool = False) -> None:
        self._ask(lambda store: None if unless_there and store.check([key]) else store.set(key, value))

    def _read(self, key: str) -> str | None:
        """The value; None where nobody wrote it, or where the store, which lives with rank 0, does not answer."""
        return self._ask(lambda store: store.get(key).decode() if store.check([key]) else None)

    def _ask(self, question: Callable[[torch.distributed.Store], Any]) -> Any:
        if self._store is None or time.monotonic() - self._store_failed_at < STORE_TIMEOUT_S:
            return None  # each further question would cost the time-out again
        try:
            return question(self._store)
        except (RuntimeError, ValueError):  # torch's store errors are RuntimeErrors
            self._store_failed_at = time.monotonic()
            return None


def watchdog(run: Path, config: GuardsConfig) -> AbstractContextManager[Watchdog | None]:
    """The watchdog that the configuration asks for, as a context; it yields None where that is none."""
    if not config.watchdog_timeout_s:
        return nullcontext()
    return Watchdog(run, timeout_s=config.watchdog_timeout_s, silent_after_s=config.silent_rank_s)


def odd_ranks(positions: Mapping[int, tuple[int, str]]) -> str:
    """The ranks that are not where most are, as text; '' where all are at the same place.

    Where no place has a majority, the ranks furthest behind count as odd, and among equals those that wait for data.
    """
    places = Counter(positions.values())
    if len(places) < 2:
        return ""
    (place, count), (_, next_count) = places.most_common(2)
    if count == next_count:
        place = max(places, key=lambda each: (each[0], each[1] != "data"))
    odd = [f"rank {rank} (step {at[0]}, {at[1]})" for rank, at in sorted(positions.items()) if at != place]
    return f"{', '.join(odd)} while {places[place]} at step {place[0]}, {place[1]}"


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because a peer or the way to it is gone."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL error")
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error) for sign in signs)


def _describe(rank: int, sign: str) -> str:
    if not sign:
        return f"rank {rank}"
    _, step, phase, host, pid = json.loads(sign)
    return f"rank {rank} (host {host}, pid {pid}, last at step {step}, {phase})"


def _connect_store(prefix: str) -> torch.distributed.Store:
    """A second connection to the job's store, because the main thread may be inside a call on its own for long."""
    store = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=STORE_TIMEOUT_S),
    )
    return torch.distributed.PrefixStore(prefix, store)

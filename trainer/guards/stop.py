"""Stopping a run before its end, on a signal or at the time limit. Any rank may ask for it; all ranks stop together."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from transpooler.common import STOP_SIGNALS, duration_s, format_duration, handle_signals

NO_REASON = "stopped"


class Stopped(Exception):
    """All ranks have agreed to stop; raised on each of them at the same place."""


class Stop:
    """Whether this rank has been asked to stop, and whether any rank has."""

    def __init__(self, max_time: str | float | None = None) -> None:
        """The clock of `max_time` (train.max_time) starts now."""
        self._signalled = threading.Event()
        self._limit_s = duration_s(max_time) if max_time is not None else None
        self._started = time.monotonic()
        self.reason = NO_REASON

    def wanted(self) -> bool:
        """Whether a signal asked this rank to stop, or its time is over."""
        if self._limit_s is not None and time.monotonic() - self._started >= self._limit_s:
            self.reason = f"train.max_time of {format_duration(self._limit_s)} is over"
            return True
        return self._signalled.is_set()

    def check(self, device: torch.device) -> None:
        """Raise `Stopped` on all ranks if any wants to stop. A collective: every rank must call it equally often."""
        wanted = torch.tensor(int(self.wanted()), device=device)
        torch.distributed.all_reduce(wanted, torch.distributed.ReduceOp.MAX)
        if wanted.item():
            raise Stopped

    def common_reason(self) -> str:
        """Why the ranks stop: the reason of the first that wanted to. A collective."""
        reasons: list[str] = [NO_REASON] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(reasons, self.reason)
        return next((reason for reason in reasons if reason != NO_REASON), NO_REASON)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside this context STOP_SIGNALS ask this rank to stop."""

        def handle(number: int) -> None:
            self.reason = f"got {signal.Signals(number).name}"
            self._signalled.set()

        with handle_signals(STOP_SIGNALS, handle):
            yield

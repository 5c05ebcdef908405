"""Signals handled for a while, and put back as they were."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send when a job has to save and end."""


@contextmanager
def handle_signals(numbers: Iterable[int], handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` for these signals inside the block. Only the main thread may do so (ValueError)."""
    previous = {number: signal.signal(number, lambda got, _: handle(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

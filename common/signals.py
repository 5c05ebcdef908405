"""Signals handled for a while, and put back as they were."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transpooler.common.exit_codes import PREEMPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send when a job has to save and end."""
UNWIND_S = 3.0
"""How long a process that was told to stop before its work began may take to leave by itself."""


@contextmanager
def handle_signals(numbers: Iterable[int], handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` for these signals inside the block. Only the main thread may do so (ValueError)."""
    previous = {number: signal.signal(number, lambda got, _: handle(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def exit_on_stop_signals(code_of: Callable[[int], int] = lambda _: PREEMPTED) -> Iterator[None]:
    """Inside the block STOP_SIGNALS end the process in one line, with `code_of(number)`: nothing is lost by that.

    `handle_signals` inside takes over. A thread sees to it where the main thread is in a long call in C, such as the
    wait for other ranks, in which Python runs no handlers. Libraries that a signal, Ctrl-C too, hits while they are
    imported may turn its exception into another one: that ends as the signal would have.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    told: list[int] = []

    def leave(number: int, _: object) -> None:
        tell(number)
        raise SystemExit(code_of(number))

    def interrupt(number: int, _: object) -> None:
        told.append(number)
        raise KeyboardInterrupt

    def tell(number: int) -> None:
        if not told and os.environ.get("RANK", "0") == "0":
            os.write(2, f"transpooler: stopped by {signal.Signals(number).name}\n".encode())
        told.append(number)

    def watch() -> None:
        while number := os.read(reader, 1):
            before = signal.getsignal(number[0])
            if before is leave:
                time.sleep(UNWIND_S)
                if signal.getsignal(number[0]) is before:
                    tell(number[0])
                    os._exit(code_of(number[0]))
        os.close(reader)

    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, leave) for number in STOP_SIGNALS}
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as nohup wants it
        handlers[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        yield
    except Exception:
        if not told:
            raise
        raise KeyboardInterrupt if told[0] == signal.SIGINT else SystemExit(code_of(told[0])) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous)
        os.close(writer)


def listens_to(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, which would end it otherwise; True where that is not to be seen."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return not Path("/proc/self/status").exists()
    caught, ignored = (int(status.partition(f"{name}:")[2].split()[0], 16) for name in ("SigCgt", "SigIgn"))
    return bool((caught | ignored) >> (number - 1) & 1)

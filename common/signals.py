"""Signals handled for a while, and put back as they were."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from transpooler.common.exit_codes import PREEMPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What schedulers, and terminals that are closed, send when a job has to save and end."""
UNWIND_S = 3.0
"""How long a process that was told to stop before its work began may take to leave by itself."""

COMES_AGAIN_S = 0.01


@contextmanager
def handle_signals(numbers: Iterable[int], handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` for these signals inside the block. Only the main thread may do so (ValueError)."""
    heard = [number for number in numbers if number != signal.SIGHUP or not _is_ignored(number)]
    previous = {number: signal.signal(number, lambda got, _: handle(got)) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def delay_signals() -> Iterator[None]:
    """Let STOP_SIGNALS and Ctrl-C wait for the end of the block, which must be short: files that belong together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    got: list[int] = []
    try:
        with handle_signals((*STOP_SIGNALS, signal.SIGINT), got.append):
            yield
    finally:
        for number in got[:1]:
            signal.raise_signal(number)


@contextmanager
def exit_on_stop_signals(code_of: Callable[[int], int] = lambda _: PREEMPTED) -> Iterator[None]:
    """Inside the block STOP_SIGNALS end the process in one line, with `code_of(number)`: nothing is lost by that.

    `handle_signals` inside takes over. A thread sees to it where the main thread is in a long call in C, such as the
    wait for other ranks, in which Python runs no handlers. Libraries that a signal, Ctrl-C too, hits while they are
    imported may turn its exception into another one: that ends as the signal would have. Where Python drops it, as in
    a `__del__`, the signal comes again.
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

    hook, sys.unraisablehook = sys.unraisablehook, partial(_repeat_dropped, told, sys.unraisablehook)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    actions = {**dict.fromkeys(STOP_SIGNALS, leave), signal.SIGINT: interrupt}
    handlers = {number: signal.signal(number, action) for number, action in actions.items() if not _is_ignored(number)}
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
        sys.unraisablehook = hook
        os.close(writer)


def _repeat_dropped(
    told: Sequence[int], hook: Callable[["sys.UnraisableHookArgs"], object], dropped: "sys.UnraisableHookArgs"
) -> None:
    if told and isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
        threading.Timer(COMES_AGAIN_S, os.kill, (os.getpid(), told[0])).start()  # here it would be dropped, too
    else:
        hook(dropped)


def _is_ignored(number: int) -> bool:
    """As nohup wants SIGHUP, and shells SIGINT for what runs behind `&`."""
    return signal.getsignal(number) == signal.SIG_IGN


def listens_to(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, which would end it otherwise; True where that is not to be seen."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return not Path("/proc/self/status").exists()
    caught, ignored = (int(status.partition(f"{name}:")[2].split()[0], 16) for name in ("SigCgt", "SigIgn"))
    return bool((caught | ignored) >> (number - 1) & 1)

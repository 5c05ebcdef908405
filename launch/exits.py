"""Turns exceptions into exit codes."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from transpooler.common import (
    DONE,
    INTERRUPTED,
    PREEMPTED,
    STOP_SIGNALS,
    USER_ERROR,
    UserError,
    die_when,
    disk_problem,
    exit_on_stop_signals,
)

CONTINUED = ("train", "launch", "evaluate")
"""Commands that end with 75 on a signal of the scheduler, however early: it starts them again."""
WAITING_ENGINES = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""Variables of torchrun and DeepSpeed's launcher, which wait for the ranks that they started: they end together."""


def run_guarded(action: Callable[[], int | None]) -> int:
    """Run `action` and return its exit code. A user's mistakes are printed, a line each; bugs keep their traceback.

    A disk that cannot be written is the user's to mend, whoever raises what about it.
    """
    threading.excepthook = _print_unless_disk  # the main thread hears of it, too
    try:
        code = action() or DONE
        sys.stdout.flush()  # its disk may be full, too
        return code
    except UserError as error:
        print_user_error(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return end_interrupted()
    except Exception as error:
        if (problem := disk_problem(error)) is None:
            raise
        print_user_error(UserError(problem))
        return USER_ERROR


def end_interrupted() -> int:
    """Say so, and return the exit code.

    Where Ctrl-C hits Python while it runs a text, as namedtuple does, Python remembers that and ends by the signal
    whatever the code says, unless it has run another text since.
    """
    exec("")
    print("transpooler: interrupted", file=sys.stderr)
    return INTERRUPTED


def run_stoppable(action: Callable[[], int | None], code_of: Callable[[int], int]) -> int:
    """`run_guarded`; a signal that asks it to end does so, with `code_of(number)`."""
    try:
        with exit_on_stop_signals(code_of):
            return run_guarded(action)
    except KeyboardInterrupt:
        return end_interrupted()


def code_of_signals(command: str) -> Callable[[int], int]:
    """What a command ends with on a signal that asks it to: 75, or 128 + its number where nobody starts it again."""
    return lambda number: PREEMPTED if command in CONTINUED else 128 + number


def ignore_signals() -> None:
    """When the work is done: signals would turn what is left, Python's own end, into a failure."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def run_continued(action: Callable[[], int | None]) -> int:
    """`run_guarded` for work that a scheduler starts again after code 75, and that engines start as ranks.

    Signals are heard from the first moment on, and the process ends with the engine that started it.
    """
    if os.environ.keys() & set(WAITING_ENGINES):
        die_when(lambda: False)
    return run_stoppable(action, lambda _: PREEMPTED)


class _Stream(io.FileIO):
    """Standard output, whose errors name it, or standard error, which has none: the exit code tells enough."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == 2:
                return len(data)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python's flush at its end fails once more
            if isinstance(error, BrokenPipeError):  # its reader (head, less) has ended, which is no error
                raise SystemExit(DONE) from None
            problem = f"standard output cannot be written: {error.strerror}; free space, or send it elsewhere"
            raise UserError(problem) from None


def claim_standard_streams() -> None:
    """Say one line where standard output is full or closed, whoever prints, and end quietly where its reader has ended.

    The numbers of closed streams are taken, or files that are opened later would get them, and what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 (empty)
    for number, name in enumerate(("stdout", "stderr"), start=1):
        before = getattr(sys, name)
        how = {"encoding": before.encoding, "errors": before.errors} if before else {}
        at_once = number == 2 or before is None or before.line_buffering or before.write_through
        buffer = io.BufferedWriter(_Stream(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(buffer, line_buffering=at_once, **how))


def _print_unless_disk(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is None or not (isinstance(error, FileNotFoundError) or disk_problem(error)):
        threading.__excepthook__(arguments)


def print_user_error(error: UserError) -> None:
    """Print each line of the message as `transpooler: error: ...` on standard error."""
    for line in str(error).split("\n"):
        print(f"transpooler: error: {line}", file=sys.stderr, flush=True)

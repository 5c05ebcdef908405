"""Turns exceptions into exit codes."""

import os
import signal
import sys
import threading
from collections.abc import Callable

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
    show_controls,
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
    except BrokenPipeError:
        _discard_output()  # its reader (head, less) has ended, which is no error
        return DONE
    except Exception as error:
        if (problem := disk_problem(error)) is None:
            raise
        print_user_error(UserError(problem))
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
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


def _discard_output() -> None:
    """Point standard output elsewhere, so that the interpreter's flush at exit does not fail either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_unless_disk(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is None or not (isinstance(error, FileNotFoundError) or disk_problem(error)):
        threading.__excepthook__(arguments)


def print_user_error(error: UserError) -> None:
    """Print each line of the message as `transpooler: error: ...` on standard error."""
    for line in str(error).split("\n"):
        print(f"transpooler: error: {show_controls(line)}", file=sys.stderr, flush=True)

"""What a person reads while work goes on: log lines with the time, and progress with what is left.

Everything goes through `logging` (logger "transpooler") to standard error; standard output is for results. On a
terminal progress is a bar of rich, elsewhere a line now and then.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transpooler.common.text import one_line

PLAIN_LINE_EVERY_S = 10.0
FORMAT, TIME_FORMAT = "%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"

logger = logging.getLogger("transpooler")


class _StandardError(logging.StreamHandler):
    """Writes to what sys.stderr is at that moment, as print does: tests and notebooks exchange it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(FORMAT, TIME_FORMAT))

    @property
    def stream(self) -> Any:
        return sys.stderr


def _set_up() -> None:
    if not logger.handlers:  # an application that has its own keeps it
        logger.addHandler(_StandardError())
        logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def set_quiet(quiet: bool) -> None:
    """Silence `say` and `progress` for this process (the command line's -q); errors still print."""
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def is_quiet() -> bool:
    """Whether `set_quiet(True)` was called last."""
    return not logger.isEnabledFor(logging.INFO)


def say(message: str) -> None:
    """Log one line for the user."""
    _set_up()
    logger.info("%s", one_line(message))


class Progress:
    """Handle given by `progress`: call `advance(n, note)` as work gets done."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._started = self._last_line = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` units as done; `note` is shown beside them."""
        self.done += amount
        now = time.monotonic()
        if now - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = now
            say(self._line(now - self._started, note))

    def _line(self, elapsed_s: float, note: str) -> str:
        if self.total is None:
            return f"{self.label}: {self.done} done in {elapsed_s:.0f} s {note}".rstrip()
        left_s = elapsed_s / max(self.done, 1) * (self.total - self.done)
        return f"{self.label}: {self.done}/{self.total}, {left_s:.0f} s left {note}".rstrip()


class _Bar(Progress):
    """A bar of rich."""

    def __init__(self, label: str, total: int | None, rich: Any) -> None:
        super().__init__(label, total)
        self._rich, self._task = rich, rich.add_task(one_line(label), total=total, note="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        self._rich.update(self._task, advance=amount, note=note)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress]:
    """Show progress of `total` units of work (None: unknown) while the block runs."""
    if is_quiet() or not sys.stderr.isatty():
        yield Progress(label, total)
        return
    with _rich_progress() as rich:
        yield _Bar(label, total, rich)


def _rich_progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )

"""Progress on long work: a bar with ETA on a terminal, a plain line now and then elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PLAIN_LINE_EVERY_S = 10.0

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence `say` and `progress` for this process (the command line's -q); errors still print."""
    global _quiet
    _quiet = quiet


def say(message: str) -> None:
    """Print one line for the user on standard error (standard output is for results)."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


class Progress:
    """Handle given by `progress`: call `advance(n, note)` as work gets done."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._started = self._last_line = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
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
    def __init__(self, label: str, total: int | None) -> None:
        super().__init__(label, total)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.rich = RichProgress(*columns, console=Console(stderr=True))
        self._task = self.rich.add_task(label, total=total, note="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        self.rich.update(self._task, advance=amount, note=note)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress]:
    """Show progress of `total` units of work (None: unknown) while the block runs."""
    if _quiet or not sys.stderr.isatty():
        yield Progress(label, total)
        return
    bar = _Bar(label, total)
    with bar.rich:
        yield bar

"""Units: input files that are read together, and the parts made of them. All units of a split share one queue of tasks.

A unit whose parts are all there is marked complete, so that its files need not be read again.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transpooler.common.files import atomic_write
from transpooler.common.log import Progress
from transpooler.data_pipeline.prepare.executors import Executor
from transpooler.data_pipeline.prepare.tasks import Context, part_info, run_task, tasks_of
from transpooler.data_pipeline.sources.documents import FileVerdict
from transpooler.data_pipeline.sources.locations import DATASETS
from transpooler.data_pipeline.sources.records import Columns

_TEXTS_TOGETHER = 500  # text files in one unit


@dataclass
class Unit:
    """Input files that are read together (one, or several small text files), and their parts in order."""

    locations: list[str]
    folder: Path
    """Where the parts lie."""
    parts: list[Path] = field(default_factory=list)
    was_read: bool = False
    """Whether all parts are known."""
    num_running: int = 0
    """Parts that are being made."""

    def complete(self) -> bool:
        """Whether an earlier run has made all parts; then they are known."""
        if (self.folder / "complete").is_file():
            number = int((self.folder / "complete").read_text())
            self.parts, self.was_read = [self.folder / f"{i:06d}.npz" for i in range(number)], True
        return self.was_read

    def mark_complete(self) -> None:
        """Let later runs know that all parts are there."""
        if not (self.folder / "complete").is_file():
            with atomic_write(self.folder / "complete", unique=True) as file:
                file.write(str(len(self.parts)))


def together(locations: Sequence[str]) -> Iterator[list[str]]:
    """The files of each unit: each alone, but plain text files (one document each) in hundreds."""
    texts: list[str] = []
    for location in locations:
        is_text = location.endswith(".txt") and not location.startswith(DATASETS)
        if is_text:
            texts.append(location)
        if texts and (not is_text or len(texts) == _TEXTS_TOGETHER):
            yield texts
            texts = []
        if not is_text:
            yield [location]
    if texts:
        yield texts


def do_units(
    units: Sequence[Unit], context: Context, executor: Executor, array_task: tuple[int, int] | None, bar: Progress
) -> None:
    """Make the parts that are missing, or this array task's share of them. UserError: a file is bad as a whole."""
    owners: deque[Unit] = deque()  # of the tasks in the executor's hands, whose results come in order

    def missing() -> Iterator[tuple[Context, Any]]:
        for number, unit in enumerate(units):
            if unit.complete():
                continue
            unit.folder.mkdir(parents=True, exist_ok=True)
            for i, task in enumerate(tasks_of(unit.locations, unit.folder, context.columns, context.config.task_mib)):
                if array_task is not None and (number + i) % array_task[1] != array_task[0]:
                    continue
                unit.parts.append(task.part)
                if not task.part.is_file():
                    unit.num_running += 1
                    owners.append(unit)
                    yield context, task
            unit.was_read = True

    finished = 0
    for _ in executor.run(run_task, missing()):
        owners.popleft().num_running -= 1
        bar.advance()
        if array_task is None:  # soon, since a wrong column should not show at the end of a thousand files
            finished = _finish(units, finished, context.columns)
    if array_task is None:
        _finish(units, finished, context.columns)


def _finish(units: Sequence[Unit], first: int, columns: Columns) -> int:
    """Judge and mark the units from `first` on that are ready; returns the first that is not."""
    while first < len(units) and units[first].was_read and not units[first].num_running:
        _judge(units[first], columns)
        units[first].mark_complete()
        first += 1
    return first


def _judge(unit: Unit, columns: Columns) -> None:
    """Refuse a file that is bad as a whole, now that its records are counted."""
    verdict = FileVerdict()
    for info in map(part_info, unit.parts):
        verdict.counts.update(info["records"])
        verdict.keys = verdict.keys or info["keys"]
        verdict.first_bad = verdict.first_bad or info["first_bad"]
    verdict.judge(unit.locations[0], columns)

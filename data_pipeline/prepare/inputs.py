"""Groups of input files that are read together, and the parts made of them. A split's groups share one queue of tasks.

A group whose parts are all there is marked complete, so that its files need not be read again.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transpooler.common import Progress, atomic_write
from transpooler.data_pipeline.prepare.executors import Executor
from transpooler.data_pipeline.prepare.tasks import Context, cut_tasks, read_part_info, run_task
from transpooler.data_pipeline.sources.documents import FileVerdict
from transpooler.data_pipeline.sources.locations import DATASETS
from transpooler.data_pipeline.sources.records import Columns

_MAX_TEXTS = 500  # text files in one group


@dataclass
class InputGroup:
    """Input files that are read together (one, or several small text files), and their parts in order."""

    locations: list[str]
    folder: Path
    """Holds the parts."""
    parts: list[Path] = field(default_factory=list)
    was_read: bool = False
    """Whether all parts are known."""
    num_running: int = 0
    """Parts that are being made."""

    def find_parts(self) -> bool:
        """Whether an earlier run has made all parts; if so, `parts` lists them."""
        if (self.folder / "complete").is_file():
            number = int((self.folder / "complete").read_text())
            self.parts, self.was_read = [self.folder / f"{i:06d}.npz" for i in range(number)], True
        return self.was_read

    def mark_complete(self) -> None:
        """Let later runs know that all parts are there."""
        if not (self.folder / "complete").is_file():
            with atomic_write(self.folder / "complete", unique=True) as file:
                file.write(str(len(self.parts)))


def group_locations(locations: Sequence[str]) -> Iterator[list[str]]:
    """Yield the files of each group: one file, or hundreds of consecutive text files, each of which is one document."""
    texts: list[str] = []
    for location in locations:
        is_text = location.endswith(".txt") and not location.startswith(DATASETS)
        if is_text:
            texts.append(location)
        if texts and (not is_text or len(texts) == _MAX_TEXTS):
            yield texts
            texts = []
        if not is_text:
            yield [location]
    if texts:
        yield texts


def make_parts(
    groups: Sequence[InputGroup],
    context: Context,
    executor: Executor,
    array_task: tuple[int, int] | None,
    bar: Progress,
) -> None:
    """Make the parts that are missing, or this array task's share of them. UserError: a file is bad as a whole."""
    owners: deque[InputGroup] = deque()  # of the tasks that the executor has, whose results come in order

    def list_missing() -> Iterator[tuple[Context, Any]]:
        for number, group in enumerate(groups):
            if group.find_parts():
                continue
            group.folder.mkdir(parents=True, exist_ok=True)
            tasks = cut_tasks(group.locations, group.folder, context.columns, context.config.task_mib)
            for i, task in enumerate(tasks):
                if array_task is not None and (number + i) % array_task[1] != array_task[0]:
                    continue
                group.parts.append(task.part)
                if not task.part.is_file():
                    group.num_running += 1
                    owners.append(group)
                    yield context, task
            group.was_read = True

    finished = 0
    for _ in executor.run(run_task, list_missing()):
        owners.popleft().num_running -= 1
        bar.advance()
        if array_task is None:  # at once: a wrong column must not show only after a thousand files
            finished = _finish(groups, finished, context.columns)
    if array_task is None:
        _finish(groups, finished, context.columns)


def _finish(groups: Sequence[InputGroup], first: int, columns: Columns) -> int:
    """Judge and mark the groups from `first` on that are ready; returns the number of the first that is not."""
    while first < len(groups) and groups[first].was_read and not groups[first].num_running:
        _judge(groups[first], columns)
        groups[first].mark_complete()
        first += 1
    return first


def _judge(group: InputGroup, columns: Columns) -> None:
    """Raise UserError if a file is bad as a whole, which its counted records show."""
    verdict = FileVerdict()
    for info in map(read_part_info, group.parts):
        verdict.counts.update(info["records"])
        verdict.keys = verdict.keys or info["keys"]
        verdict.first_bad = verdict.first_bad or info["first_bad"]
    verdict.judge(group.locations[0], columns)

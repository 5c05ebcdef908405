"""Groups of input files that are read together, and the parts made of them. A split's groups share one queue of tasks.

A group whose parts are all there is marked complete, so that its files need not be read again.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transpooler.common import Progress, atomic_write, read_json, say
from transpooler.data_pipeline.prepare.executors import Executor
from transpooler.data_pipeline.prepare.tasks import Context, Task, cut_tasks, read_part_info, run_task
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.damage import DamagedFileError
from transpooler.data_pipeline.sources.documents import FileVerdict, find_damage
from transpooler.data_pipeline.sources.locations import DATASETS

_MAX_TEXTS = 500  # small files in one group
_SMALL = (".txt", ".json")


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
    left_out: dict[str, str] = field(default_factory=dict)
    """Files of which nothing is kept, and why: bad_file or empty_file."""

    def find_parts(self, skip: bool) -> bool:
        """Whether an earlier run has made all parts; if so, `parts` lists them. Without `skip` no file may be bad."""
        if (self.folder / "complete").is_file():
            found = read_json(self.folder / "complete")
            if skip or "bad_file" not in found["left_out"].values():
                self.parts = [self.folder / f"{i:06d}.npz" for i in range(found["num_parts"])]
                self.left_out, self.was_read = found["left_out"], True
        return self.was_read

    def leave_out(self, location: str, error: DamagedFileError) -> None:
        """Leave a damaged file out; if it is the only one, also the parts that were made before the damage."""
        say(f"{error}; left out (prepare.on_bad_file=skip)")
        self.left_out[location] = "bad_file"
        if len(self.locations) == 1:
            self.parts = []

    def mark_complete(self) -> None:
        """Let later runs know that all parts are there."""
        with atomic_write(self.folder / "complete", unique=True) as file:
            file.write(json.dumps({"num_parts": len(self.parts), "left_out": self.left_out}))


def group_locations(locations: Sequence[str]) -> Iterator[list[str]]:
    """Yield the files of each group: one file, or hundreds of consecutive files that mostly are one document each."""
    texts: list[str] = []
    for location in locations:
        is_text = location.endswith(_SMALL) and not location.startswith(DATASETS)
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
    """Make the parts that are missing, or this array task's share of them.

    Raises DamagedFileError, unless `prepare.on_bad_file` leaves damaged files out, and UserError if a file has none of
    the keys.
    """
    skip = context.config.on_bad_file == "skip"
    owners: deque[InputGroup] = deque()  # of the tasks that the executor has, whose results come in order

    def list_missing() -> Iterator[tuple[Context, Any]]:
        for number, group in enumerate(groups):
            if group.find_parts(skip):
                continue
            group.folder.mkdir(parents=True, exist_ok=True)
            try:
                tasks = _cut_group(group, context, skip)
                for i, task in enumerate(tasks):
                    if array_task is not None and (number + i) % array_task[1] != array_task[0]:
                        continue
                    group.parts.append(task.part)
                    if not task.part.is_file():
                        group.num_running += 1
                        owners.append(group)
                        yield context, task
            except DamagedFileError as error:
                if not skip:
                    raise
                group.leave_out(group.locations[0], error)
            group.was_read = True

    finished = 0
    for _ in executor.run(run_task, list_missing()):
        owners.popleft().num_running -= 1
        bar.advance()
        if array_task is None:  # at once: a wrong column must not show only after a thousand files
            finished = _finish(groups, finished, context.columns, skip)
    if array_task is None:
        _finish(groups, finished, context.columns, skip)


def _cut_group(group: InputGroup, context: Context, skip: bool) -> Iterator[Task]:
    """Cut a group into tasks. Of several files that `skip` may leave out, each is looked through before it is used."""
    locations = group.locations
    if skip and len(locations) > 1:
        for location in locations:
            if (error := find_damage(location, context.columns)) is not None:
                group.leave_out(location, error)
        locations = [location for location in locations if location not in group.left_out]
    return cut_tasks(locations, group.folder, context.columns, context.config.task_mib)


def _finish(groups: Sequence[InputGroup], first: int, columns: Columns, skip: bool) -> int:
    """Judge and mark the groups from `first` on that are ready; returns the number of the first that is not."""
    while first < len(groups) and groups[first].was_read and not groups[first].num_running:
        try:
            _judge(groups[first], columns)
        except DamagedFileError as error:
            if not skip:
                raise
            groups[first].leave_out(groups[first].locations[0], error)
        groups[first].mark_complete()
        first += 1
    return first


def _judge(group: InputGroup, columns: Columns) -> None:
    """Note a file without records; raise UserError if one is bad as a whole, which its counted records show."""
    verdict = FileVerdict()
    for info in map(read_part_info, group.parts):
        verdict.counts.update(info["records"])
        verdict.keys = verdict.keys or info["keys"]
        verdict.first_bad = verdict.first_bad or info["first_bad"]
    if not group.left_out and not verdict.counts:
        group.left_out[group.locations[0]] = "empty_file"
    verdict.judge(group.locations[0], columns)

"""The output of a preparation: complete or absent, recognised when finished, never overwritten; local or remote."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from transpooler.common import (
    INCOMPLETE_SUFFIX,
    DiskFullError,
    UserError,
    fsync_folder,
    is_disk_full,
    local_path,
    progress,
    read_json,
    write_json,
)
from transpooler.data_pipeline.prepare.workspace import MADE
from transpooler.data_pipeline.shards.manifest import REPORT_FORMAT, REPORT_NAME, UPLOAD_NAME, read_report
from transpooler.data_pipeline.shards.store import FileStore
from transpooler.data_pipeline.sources import stamps
from transpooler.data_pipeline.sources.locations import is_remote

Splits = dict[str, list[str]]


def describe_inputs(splits: Splits, note: Path) -> dict[str, list[dict[str, Any]]]:
    """Describe the input files such that other or changed files are recognised.

    The file `note` keeps the descriptions for later runs and for other tasks of an array, so that checksums of
    unchanged files are not computed again.
    """
    items = [item for items in read_json(note).values() for item in items] if note.is_file() else []
    locations = chain.from_iterable(splits.values())
    found = {item["path"]: item for item in stamps.describe_inputs(locations, {item["path"]: item for item in items})}
    inputs = {split: [found[location] for location in names] for split, names in splits.items()}
    if items != [item for items in inputs.values() for item in items]:
        write_json(note, inputs)
    return inputs


def open_output(output: str) -> FileStore:
    """Return the place of an output: a URL, or the real folder behind links. UserError: it names no lasting folder."""
    text = output.removeprefix("file://")
    if any(part.startswith("memory://") for part in text.split("::")):
        raise UserError(
            f"prepare.output: {output!r} ends with the process, and nothing is left; use a folder or bucket"
        )
    if is_remote(text):
        if not text.split("://", 1)[1].strip("/"):
            raise UserError(f"prepare.output: {output!r} names no bucket or folder; for example s3://bucket/shards")
        return FileStore(text)
    path = local_path(text)
    if not text or not path.resolve().name:
        raise UserError(f"prepare.output: {output!r} names no folder that could be made; for example shards")
    return FileStore(path.resolve() if path.is_symlink() or ".." in path.parts else path.absolute())


def find_difference(report: dict[str, Any], settings: dict[str, Any], splits: Splits) -> str | None:
    """Return what an output was prepared from instead of these settings and inputs; None if it was from these."""
    recorded = report.get("settings", {})
    changed = [name for name, value in settings.items() if recorded.get(name) != value]
    if report.get("format") != REPORT_FORMAT or changed:
        return f"with other settings ({', '.join(changed) or 'format'})"
    return None if _same_inputs(report.get("inputs", {}), splits) else "from other input files, or they have changed"


def read_finished_report(output: FileStore, settings: dict[str, Any], splits: Splits) -> dict[str, Any] | None:
    """Read the report of a finished output; None without output.

    UserError: its settings or inputs were others, or it holds files that preparation did not write.
    """
    if output.folder is not None and output.folder.exists() and not output.folder.is_dir():
        raise UserError(f"{output.location}: is a file; choose another prepare.output")
    report = read_report(output)
    if report is None:
        _refuse_foreign_files(output)
    elif difference := find_difference(report, settings, splits):
        raise UserError(f"{output.location}: was prepared {difference}; choose another prepare.output or remove it")
    return report


def check_writable(output: FileStore) -> None:
    """Raise UserError if the output could not be written: before the work, rather than after it."""
    if output.folder is None:
        before = output.read(UPLOAD_NAME)
        try:
            output.write(UPLOAD_NAME, before or b"{}")
        except FileNotFoundError as error:
            raise UserError(f"{output.location}: cannot write: {error}; make the bucket, or mend the name") from error
        if before is None:
            with suppress(UserError):  # where nothing may be removed, it is overwritten later
                output.remove(UPLOAD_NAME)
        return
    parent = output.folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{output.location}: cannot write into {parent}; choose another prepare.output")


def publish(work: Path, output: FileStore) -> None:
    """Move finished work to the output: by one rename, or file by file, the report last.

    UserError: it failed, and the work is kept; the next run publishes what is missing.
    """
    _refuse_foreign_files(output)
    made, target = work / MADE, output.folder
    try:
        if target is not None and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # another file system
                os.replace(made, target)
        if made.exists():
            _fill(made, output)
        elif target is not None:
            fsync_folder(target.parent)
    except (OSError, UserError) as error:
        raise UserError(
            f"{output.location}: cannot publish: {error}; mend that and run the same command again: it continues with "
            f"the finished work in {work}"
        ) from error


@contextmanager
def user_errors(output: str, scratch: Path) -> Iterator[None]:
    """Turn errors of the file system into UserError with the remedy."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, DiskFullError):
            raise
        if is_disk_full(error):
            raise UserError(
                f"{scratch}: the disk is full; free space and run the same command again: it continues "
                f"(or choose another prepare.output or prepare.scratch)"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{output}: cannot write: {error}; choose another prepare.output or prepare.scratch") from error


def _refuse_foreign_files(output: FileStore) -> None:
    """UserError: the output holds files that no earlier attempt to publish it has noted as its own."""
    own = {UPLOAD_NAME, *(read_report(output, UPLOAD_NAME) or {}).get("files", {})}
    for name in sorted(output.list_files()):
        if name not in own and name.removesuffix(INCOMPLETE_SUFFIX) not in own:
            raise UserError(
                f"{output.location}: holds files that `transpooler prepare` did not write, such as {name}; choose "
                "another prepare.output or remove this folder"
            )


def _fill(made: Path, output: FileStore) -> None:
    """Put the files that are missing, then the report. What another attempt left that made other files is removed."""
    content = (made / REPORT_NAME).read_bytes()
    files, there = json.loads(content)["files"], output.list_files()
    if output.read(UPLOAD_NAME) != content:
        for name in there.keys() - {UPLOAD_NAME}:
            output.remove(name)
        output.write(UPLOAD_NAME, content)
        there = {}
    missing = [name for name, entry in files.items() if there.get(name) != entry["size_bytes"]]
    with progress(f"publish to {output.location} (files)", len(missing)) as bar:
        for name in sorted(missing, key=lambda name: (not name.endswith(".tar"), name)):  # no index without its shards
            output.put(made / name, name)
            bar.advance()
    output.put(made / REPORT_NAME, REPORT_NAME)
    with suppress(UserError, OSError):  # the output is complete; nobody looks at it any more
        output.remove(UPLOAD_NAME)


def _same_inputs(recorded: dict[str, list[dict[str, Any]]], splits: Splits) -> bool:
    """Whether the inputs have the paths and sizes of the recorded ones, and the same time of change or content."""
    if {split: [item["path"] for item in items] for split, items in recorded.items()} != splits:
        return False
    return not any(stamps.find_changed(chain.from_iterable(recorded.values())))

"""The output folder of a preparation: complete or absent, recognised when finished, never overwritten."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import INCOMPLETE_SUFFIX, fsync_folder, read_json, sha256_of

REPORT_NAME = "report.json"
REPORT_FORMAT = 1

Splits = dict[str, list[Path]]


def describe_inputs(splits: Splits) -> dict[str, list[dict[str, Any]]]:
    """What tells the input files from others or changed ones."""
    return {split: [{**_stamp(path), "sha256": sha256_of(path)} for path in paths] for split, paths in splits.items()}


def _stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path), "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def finished_report(output: Path, settings: dict[str, Any], splits: Splits) -> dict[str, Any] | None:
    """The report of a finished output of the same settings and inputs; None if there is no output yet."""
    if not output.exists():
        return None
    if not output.is_dir():
        raise UserError(f"{output}: is a file; choose another prepare.output")
    if not any(output.iterdir()):
        return None
    remedy = "choose another prepare.output or remove this folder"
    if not (output / REPORT_NAME).is_file():
        raise UserError(f"{output}: holds files that `transpooler prepare` did not write; {remedy}")
    report = read_json(output / REPORT_NAME)
    changed = [name for name, value in settings.items() if report.get("settings", {}).get(name) != value]
    if report.get("format") != REPORT_FORMAT or changed:
        raise UserError(f"{output}: was prepared with other settings ({', '.join(changed) or 'format'}); {remedy}")
    if not _same_inputs(report["inputs"], splits):
        raise UserError(f"{output}: was prepared from other input files, or they have changed; {remedy}")
    return report


def _same_inputs(recorded: dict[str, list[dict[str, Any]]], splits: Splits) -> bool:
    """Same paths and sizes, and either untouched since or of the same content."""
    if {split: [item["path"] for item in items] for split, items in recorded.items()} != {
        split: [str(path) for path in paths] for split, paths in splits.items()
    }:
        return False
    for item, path in (
        (item, path) for split in splits for item, path in zip(recorded[split], splits[split], strict=True)
    ):
        stamp = _stamp(path)
        if stamp["size_bytes"] != item["size_bytes"]:
            return False
        if stamp["mtime_ns"] != item["mtime_ns"] and sha256_of(path) != item["sha256"]:
            return False
    return True


@contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """An empty folder beside `output` that takes its place when the block succeeds, and goes away when it does not."""
    work = output.with_name(output.name + INCOMPLETE_SUFFIX)
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{output}: another `transpooler prepare` is writing it; wait for it to end") from None
        for leftover in work.iterdir():  # of a run that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        try:
            yield work
            os.replace(work, output)
            fsync_folder(output.parent)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    finally:
        os.close(lock)


@contextmanager
def user_errors(output: Path) -> Iterator[None]:
    """Failures of the file system while writing are the user's to mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{output}: the disk is full; free space or choose another prepare.output") from error
        raise UserError(f"{output}: cannot write: {error}; choose another prepare.output") from error

"""The output of a preparation: complete or absent, recognised when finished, never overwritten; local or remote.

Unfinished work lies in a scratch folder beside it, is kept when a run ends early, and is taken up by the next one.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transpooler.common import (
    INCOMPLETE_SUFFIX,
    DiskFullError,
    UserError,
    fsync_folder,
    is_disk_full,
    progress,
    read_json,
    write_json,
)
from transpooler.data_pipeline.config import PrepareConfig
from transpooler.data_pipeline.sources.locations import describe_input, file_system, is_remote, is_unchanged, stamp

REPORT_NAME = "report.json"
REPORT_FORMAT = 1

Splits = dict[str, list[str]]


def describe_inputs(splits: Splits, note: Path) -> dict[str, list[dict[str, Any]]]:
    """Describe the input files such that other or changed files are recognised.

    The file `note` keeps the descriptions for later runs and for other tasks of an array, so that checksums of
    unchanged files are not computed again.
    """
    items = [item for items in read_json(note).values() for item in items] if note.is_file() else []
    known = {item["path"]: item for item in items}

    def describe(location: str) -> dict[str, Any]:
        is_known = known.get(location, {}).items() >= stamp(location).items()
        return known[location] if is_known else describe_input(location)

    inputs = {split: [describe(location) for location in locations] for split, locations in splits.items()}
    if items != [item for items in inputs.values() for item in items]:
        write_json(note, inputs)
    return inputs


def read_finished_report(output: str, settings: dict[str, Any], splits: Splits) -> dict[str, Any] | None:
    """Read the report of a finished output; None without output. UserError: its settings or inputs were others."""
    report = _read_remote_report(output) if is_remote(output) else _read_local_report(Path(output).expanduser())
    if report is None:
        return None
    remedy = "choose another prepare.output or remove this folder"
    changed = [name for name, value in settings.items() if report.get("settings", {}).get(name) != value]
    if report.get("format") != REPORT_FORMAT or changed:
        raise UserError(f"{output}: was prepared with other settings ({', '.join(changed) or 'format'}); {remedy}")
    if not _same_inputs(report["inputs"], splits):
        raise UserError(f"{output}: was prepared from other input files, or they have changed; {remedy}")
    return report


def scratch_folder(config: PrepareConfig) -> Path:
    """Return the folder of unfinished work; absolute, since processes on other machines use the same paths."""
    if config.scratch is not None:
        folder = Path(config.scratch).expanduser()
    elif is_remote(config.output):
        folder = Path(config.output.rstrip("/").rsplit("/", 1)[1] + INCOMPLETE_SUFFIX)
    else:
        output = Path(config.output).expanduser()
        folder = output.with_name(output.name + INCOMPLETE_SUFFIX)
    return folder.absolute()


@contextmanager
def workspace(folder: Path, output: str, *, shared: bool) -> Iterator[Path]:
    """Lock the scratch folder: for one run alone, or for the tasks of an array together (`shared`).

    If the run fails, its work is kept for the next run, unless no part is finished yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Lock a file that is open for writing: NFS cannot lock folders, nor lock files open for reading exclusively.
    lock = os.open(folder / f"running{INCOMPLETE_SUFFIX}", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{output}: another `transpooler prepare` is writing it; wait for it to end") from None
        try:
            yield folder
        except BaseException:
            if not shared and not any(folder.glob("parts/*/*/*.npz")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(lock)


@contextmanager
def wait_for_others(folder: Path) -> Iterator[None]:
    """Run the block while no other task of the array is in such a block."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def publish(work: Path, output: str) -> None:
    """Move finished work to the output: by one rename, or by an upload whose last object is the report."""
    for leftover in [work / "parts", *work.rglob("*" + INCOMPLETE_SUFFIX), work / "lock"]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    if is_remote(output):
        _upload(work, output)
        shutil.rmtree(work)
        return
    target = Path(output).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.stat(work).st_dev == os.stat(target.parent).st_dev:
        os.replace(work, target)
    else:  # scratch on another disk: copy beside the target first
        near = target.with_name(target.name + INCOMPLETE_SUFFIX)
        shutil.rmtree(near, ignore_errors=True)
        shutil.copytree(work, near)
        os.replace(near, target)
        shutil.rmtree(work)
    fsync_folder(target.parent)


@contextmanager
def user_errors(output: str, scratch: Path) -> Iterator[None]:
    """Turn errors of the file system into UserError with the remedy."""
    try:
        yield
    except (OSError, DiskFullError) as error:
        if isinstance(error, DiskFullError) or is_disk_full(error):
            raise UserError(
                f"{scratch}: the disk is full; free space and run the same command again: it continues "
                f"(or choose another prepare.output or prepare.scratch)"
            ) from error
        raise UserError(f"{output}: cannot write: {error}; choose another prepare.output") from error


def _read_local_report(output: Path) -> dict[str, Any] | None:
    if not output.exists():
        return None
    if not output.is_dir():
        raise UserError(f"{output}: is a file; choose another prepare.output")
    if not any(output.iterdir()):
        return None
    if not (output / REPORT_NAME).is_file():
        raise UserError(
            f"{output}: holds files that `transpooler prepare` did not write; choose another prepare.output or remove "
            f"this folder"
        )
    return read_json(output / REPORT_NAME)


def _read_remote_report(output: str) -> dict[str, Any] | None:
    system, path = file_system(output)
    try:
        return json.loads(system.cat_file(f"{path.rstrip('/')}/{REPORT_NAME}"))
    except FileNotFoundError:
        return None
    except Exception as error:  # each file system has its own: no credentials, no network, no bucket
        raise UserError(f"{output}: cannot read it: {error}; check address and credentials") from error


def _upload(work: Path, output: str) -> None:
    """Copy all files, the report last. Files of an earlier attempt are overwritten by the same bytes."""
    system, root = file_system(output)
    files = sorted((path for path in work.rglob("*") if path.is_file()), key=lambda p: (p.name == REPORT_NAME, p))
    with progress(f"upload to {output} (files)", len(files)) as bar:
        for path in files:
            target = f"{root.rstrip('/')}/{path.relative_to(work).as_posix()}"
            try:
                system.put_file(str(path), target)
            except Exception as error:  # each file system has its own
                raise UserError(
                    f"{target}: cannot upload: {error}; check access and run the same command again: it continues"
                ) from error
            bar.advance()


def _same_inputs(recorded: dict[str, list[dict[str, Any]]], splits: Splits) -> bool:
    """Whether the inputs have the paths and sizes of the recorded ones, and the same time of change or content."""
    if {split: [item["path"] for item in items] for split, items in recorded.items()} != splits:
        return False
    return all(
        is_unchanged(item, location)
        for split, locations in splits.items()
        for item, location in zip(recorded[split], locations, strict=True)
    )

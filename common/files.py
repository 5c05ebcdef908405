"""Files that are either complete or absent: written beside their target, fsynced, then renamed over it."""

import errno
import fcntl
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from transpooler.common.errors import UserError

INCOMPLETE_SUFFIX = ".incomplete"


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


class DiskFullError(UserError):
    """A file could not be written because the disk, the user's quota, or the limit of a file's size is reached."""


@contextmanager
def atomic_write(
    path: Path, mode: str = "w", *, keep: bool = False, unique: bool = False, durable: bool = True
) -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` for writing; on success fsync it and rename it to `path`, else remove it.

    `keep`: what was written before a failure stays there, in PATH.incomplete. `unique`: under a temporary name of its
    own, for files that several processes may write at the same time; the last one wins. `durable=False`: without
    fsync, for files that nobody needs after a power failure.
    Raises UserError when the folder cannot be written, DiskFullError when the disk is full.
    """
    temporary = path.with_name(f"{path.name}{f'.{uuid.uuid4().hex}' if unique else ''}{INCOMPLETE_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            fsync_folder(path.parent)
    except BaseException as error:
        if os.path.lexists(temporary) and not (keep and temporary.stat().st_size):
            temporary.unlink()
        if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):  # no file breaks a pipe, its user may
            raise
        kind = DiskFullError if is_disk_full(error) else UserError
        raise kind(f"{path}: cannot write: {error.strerror}; free space or choose another folder") from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an operation failed because the disk, the user's quota, or the limit of a file's size is reached."""
    return _system_error(error) in FULL


def disk_problem(error: BaseException) -> str | None:
    """One line about an exception that a full disk, a limit or missing permissions made what it was, else None."""
    number = _system_error(error)
    if number not in FULL + FORBIDDEN:
        return None
    assert number is not None
    where = f"{path}: " if (path := _path_of(error)) else "a file cannot be written: "
    return f"{where}{os.strerror(number)}; free space, mend permissions or choose another folder"


@contextmanager
def name_in_disk_problems(folder: Path) -> Iterator[None]:
    """Turn a full disk, a limit or missing permissions that name no file into a UserError that names `folder`.

    Writing to an open file and libraries in other languages raise such. `folder` is what is written inside the block.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or _path_of(error) or (problem := disk_problem(error)) is None:
            raise
        raise (DiskFullError if is_disk_full(error) else UserError)(f"{folder}: {problem}") from error


def _system_error(error: BaseException) -> int | None:
    """The errno of what the system refused; libraries in Rust and C++ raise exceptions of their own, which quote it."""
    if isinstance(error, OSError):
        return error.errno
    if found := _RUST_ERROR.search(str(error)):
        return int(found[1])
    return next((each for each in (*FULL, errno.EROFS) if os.strerror(each) in str(error)), None)


def _path_of(error: BaseException) -> str:
    return str(error.filename or "") if isinstance(error, OSError) else ""


def local_path(text: str | Path) -> Path:
    """Where a path of a setting leads: `~/x` into the home folder, `./~/x` (or what is a Path) to what is called so."""
    return Path(os.path.expanduser(text)) if isinstance(text, str) else text


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path, remedy: str = "make it again") -> Any:
    """Read a JSON file; a missing, unreadable or broken one is a UserError that names it, and the `remedy`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from error


def lock_alone(descriptor: int, path: Path) -> bool:
    """Lock the open file `path` for this process alone; False where another one has it, or had it and removed it.

    The lock goes with the descriptor. Where the file system has no locks nobody is kept out.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return path.is_file() and os.path.samestat(os.fstat(descriptor), path.stat())


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

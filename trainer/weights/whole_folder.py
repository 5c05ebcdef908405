"""Folders that appear complete or not at all, and replace only what was made here and is as it was made.

FOLDER.incomplete holds `new`, which is being filled, and for a moment `old`, which it replaces: a kill leaves one of
the two whole, and the next start puts back an `old` that nothing has replaced. FOLDER itself holds a list of its files,
by which a later export knows what it may remove.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transpooler.common import (
    INCOMPLETE_SUFFIX,
    DiskFullError,
    UserError,
    disk_problem,
    fsync_folder,
    is_disk_full,
    lock_alone,
    read_json,
    sha256_of,
    write_json,
)
from transpooler.trainer.weights.models import MODEL_TYPES

MARK = "unfinished-export"
"""A file that tells the folder of an export that is going on, or was interrupted, from one of the user's."""
LIST = "transpooler_files.json"
"""Sizes and checksums of a finished folder's other files."""
NEW, OLD = "new", "old"
_NAMES = re.compile(
    r"""((encoder|reader)/)?(
    (config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|export)\.json
    |(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?
    |merges\.txt|chat_template\.jinja|README\.md
    |(transpooler_\w+|modeling_transpooler|configuration_transpooler)\.py
    |(openvino_)?(encoder(-\d+)?|prefill|decode)\.(onnx|xml|bin)(\.data|_data)?
    )"""
    rf"|{re.escape(LIST)}",
    re.VERBOSE,
)
"""Files of the exports of all versions; those of older ones have no list."""
_STAGED = re.compile(r"tmp\w{8}/.*")
"""What `transformers.exporters` moves into place when it is complete."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which then replaces `folder`; UserError where something else than an export is there."""
    folder = _find_place(folder)
    work = folder.with_name(folder.name + INCOMPLETE_SUFFIX)
    check_free(folder)
    try:
        with _claim(work, folder):
            yield work / NEW
            _seal(work / NEW)
            check_free(folder)  # somebody may have put a file there meanwhile
            if folder.exists():
                os.rename(folder, work / OLD)
            os.rename(work / NEW, folder)
            fsync_folder(folder.parent)
    except Exception as error:
        if not isinstance(error, OSError):  # a library in Rust or C++ has exceptions of its own
            if isinstance(error, UserError) or (problem := disk_problem(error)) is None:
                raise
            raise UserError(f"{folder}: {problem}") from error
        kind = DiskFullError if is_disk_full(error) else UserError
        raise kind(f"{folder}: cannot write: {error.strerror or error}; free space or choose another") from error


def check_free(folder: Path) -> None:
    """UserError where something else stands in the way of an export than what another one left.

    Slow work begins with it, so that it is not found at its end.
    """
    folder = _find_place(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose the name of a folder")
    if folder.is_dir() and (problem := _not_ours(folder)):
        raise UserError(f"{folder}: {problem}; move it, or choose another folder")
    work = folder.with_name(folder.name + INCOMPLETE_SUFFIX)
    if os.path.lexists(work) and (problem := _not_unfinished(work)):
        raise UserError(
            f"{work}: was not left by an export: {problem}; move it, or choose another folder than {folder}"
        )


def known_files(folder: Path) -> list[str]:
    """Names of the files in a model folder that an export may consist of, in order; its code among them."""
    return [name for name in _list_files(folder) if _NAMES.fullmatch(name)]


def _find_place(folder: Path) -> Path:
    """The folder itself, behind links. UserError: it could not be renamed, or not without harm."""
    place = Path((os.path.realpath if folder.is_symlink() or ".." in folder.parts else os.path.abspath)(folder))
    if Path.cwd().is_relative_to(place):
        raise UserError(f"{folder}: is the folder in which this command runs, or one above; name a folder of its own")
    return place


def _not_ours(folder: Path) -> str | None:
    """Why a folder may not be replaced; None if it is empty, or is an export as it was written."""
    names = _list_files(folder)
    if not names:
        return None
    path = folder / "config.json"
    values = read_json(path) if path.is_file() else None
    if not isinstance(values, dict) or values.get("model_type") not in MODEL_TYPES:
        return "is not empty and holds no exported model"
    listed = _read_list(folder)
    for name in names:
        if name not in listed if listed else not _NAMES.fullmatch(name):
            return f"holds {name}, which no export wrote"
    for name, (size, checksum) in listed.items():
        path = folder / name
        if path.is_file() and (path.stat().st_size != size or sha256_of(path) != checksum):
            return f"{name} is not as it was exported"
    return None


def _not_unfinished(work: Path) -> str | None:
    """Why a folder is no unfinished work of an export; None if it is."""
    if work.is_symlink() or not work.is_dir():
        return "it is no folder"
    names = _list_files(work)
    if names and MARK not in names:
        return f"it holds {names[0]}"
    for name in names:
        part, _, inner = name.partition("/")
        known = part in (NEW, OLD) and (not inner or _NAMES.fullmatch(inner) or _STAGED.fullmatch(inner))
        if name != MARK and not known:
            return f"it holds {name}"
    return None


@contextmanager
def _claim(work: Path, folder: Path) -> Iterator[None]:
    """Make and lock the work folder, with an empty `new` in it; it goes at the end, and on failure."""
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work / MARK, os.O_RDWR | os.O_CREAT, 0o644)  # NFS locks only what is open for writing
    try:
        if not lock_alone(lock, work / MARK):
            raise UserError(f"{folder}: another export is writing it; wait for its end or choose another folder")
        try:
            _tidy_up(work, folder)
            (work / NEW).mkdir()
            yield
        finally:
            _tidy_up(work, folder)
            (work / MARK).unlink(missing_ok=True)
            with suppress(OSError):
                work.rmdir()
    finally:
        os.close(lock)


def _tidy_up(work: Path, folder: Path) -> None:
    """Empty the work folder, but an old folder that nothing has replaced goes back to its place."""
    if (work / OLD).is_dir() and not folder.exists():
        os.rename(work / OLD, folder)
    for part in (NEW, OLD):
        shutil.rmtree(work / part, ignore_errors=True)


def _seal(folder: Path) -> None:
    """List the files, and make all of them last."""
    names = _list_files(folder)
    listed = {name: [(folder / name).stat().st_size, sha256_of(folder / name)] for name in names}
    write_json(folder / LIST, listed)
    for name in names:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    fsync_folder(folder)


def _read_list(folder: Path) -> dict[str, Any]:
    """(size, checksum) of each file, and of the list itself nothing; empty where an older version wrote the folder."""
    if not (folder / LIST).is_file():
        return {}
    listed = read_json(folder / LIST)
    valid = isinstance(listed, dict) and all(isinstance(value, list) and len(value) == 2 for value in listed.values())
    return {**listed, LIST: [(folder / LIST).stat().st_size, sha256_of(folder / LIST)]} if valid else {}


def _list_files(folder: Path) -> list[str]:
    """Files in a folder and below, and folders that hold none, by path; what Python compiled is nobody's."""
    found = []
    for path in sorted(folder.rglob("*")):
        is_leaf = path.is_symlink() or not path.is_dir() or not any(path.iterdir())
        if is_leaf and "__pycache__" not in path.parts:
            found.append(str(path.relative_to(folder)))
    return found

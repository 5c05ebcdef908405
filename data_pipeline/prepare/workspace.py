"""The folder of a preparation's unfinished work: known by a mark, locked while somebody works in it.

It holds only what this program made, until the work is published; a run that ends early leaves it to the next one.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transpooler.common import INCOMPLETE_SUFFIX, UserError, local_path, say
from transpooler.data_pipeline.config import PrepareConfig
from transpooler.data_pipeline.shards.store import FileStore
from transpooler.data_pipeline.sources.locations import is_remote

MADE = "output"
"""The folder inside the work folder that is published, and holds nothing else."""
INPUTS = f"inputs{INCOMPLETE_SUFFIX}"
TOKENIZER_NOTE = f"tokenizer{INCOMPLETE_SUFFIX}"
_LOCK, _MARK = "lock", f"running{INCOMPLETE_SUFFIX}"


def scratch_folder(config: PrepareConfig, output: FileStore) -> Path:
    """Return the folder of unfinished work; absolute, since processes on other machines use the same paths.

    UserError: it and the output lie in each other, or it is a URL.
    """
    if config.scratch is not None and is_remote(config.scratch):
        raise UserError(f"prepare.scratch: is {config.scratch!r}, a URL; name a folder that all processes see")
    name = Path(output.location).name + INCOMPLETE_SUFFIX
    if config.scratch is not None:
        work = local_path(config.scratch).absolute() / name
    else:
        work = output.folder.with_name(name) if output.folder else Path(name).absolute()
    if output.folder is not None:
        one, other = work.resolve(), output.folder.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise UserError(f"prepare.scratch: {work} and prepare.output lie in each other; choose another folder")
    return work


def is_marked(folder: Path) -> bool:
    """Whether a preparation made this work folder."""
    return (folder / _MARK).is_file()


@contextmanager
def workspace(folder: Path, output: str, settings: str, *, shared: bool) -> Iterator[Path]:
    """Make and lock the work folder: for one run alone, or for the tasks of an array together (`shared`).

    When a run alone ends, the folder goes. If it fails, its work is kept for the next run, unless no part is finished
    yet. UserError: the folder is not ours, or holds the work for another output with other `settings` (a hash).
    """
    is_new, was_marked = not folder.exists(), is_marked(folder)
    if not is_new and not was_marked and any(folder.iterdir()):
        raise UserError(
            f"{folder}: holds files that `transpooler prepare` did not write; move them, or choose another "
            "prepare.scratch (the work goes into a folder of this name in it)"
        )
    lock, made_here = _lock(folder, output, shared), False
    try:
        made_here = _claim(folder, lock, output, settings, is_new=is_new, was_marked=was_marked)
        try:
            yield folder
        except BaseException:
            if not shared and not any(folder.glob("parts/*/*/*.npz")):
                _clear(folder)
            raise
        if not shared:
            _clear(folder)
    finally:
        os.close(lock)
        if made_here and not is_marked(folder):
            try:
                folder.rmdir()
            except OSError:
                say(f"{folder}: stays, since it holds files that this preparation did not write")


@contextmanager
def wait_for_others(folder: Path) -> Iterator[None]:
    """Run the block while no other task of the array is in such a block."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, output: str, shared: bool) -> int:
    """Return a descriptor of the folder's mark, locked. UserError: another run has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        # A file that is open for writing: NFS cannot lock folders, nor lock files open for reading exclusively.
        lock = os.open(folder / _MARK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"{output}: another `transpooler prepare` is writing it; wait for it to end") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (folder / _MARK).stat()):
                return lock
        os.close(lock)  # the run that had it has ended meanwhile, and removed it


def _claim(folder: Path, lock: int, output: str, settings: str, *, is_new: bool, was_marked: bool) -> bool:
    """Note in the mark whose work this is; returns whether a preparation made the folder itself."""
    content = os.pread(lock, 1 << 16, 0)
    try:
        known = json.loads(content)
    except ValueError:  # it is new, or of an earlier version
        known = {}
    if known.get("output", output) != output and known["settings"] != settings:
        raise UserError(
            f"{folder}: holds unfinished work for {known['output']}; finish that, remove the folder, or choose another "
            "prepare.scratch"
        )
    made_here = is_new or known.get("made_here", was_marked)
    mark = json.dumps({"output": output, "settings": settings, "made_here": made_here}).encode()
    if mark != content:
        os.ftruncate(lock, os.pwrite(lock, mark, 0))
    return made_here


def _clear(folder: Path) -> None:
    """Remove all that a preparation makes in its work folder, the mark last."""
    for path in (folder / "parts", folder / MADE):
        shutil.rmtree(path, ignore_errors=True)
    for path in (*folder.glob("*.plan*"), *(folder / name for name in (INPUTS, TOKENIZER_NOTE, _LOCK, _MARK))):
        path.unlink(missing_ok=True)

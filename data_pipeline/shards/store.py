"""A folder of files on this machine or behind a URL (fsspec): listed, read and filled in the same way."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transpooler.common import UserError, atomic_write, fsync_folder, local_path, sha256_of
from transpooler.data_pipeline.sources.locations import file_system, is_remote

_BLOCK_BYTES = 16 << 20


class FileStore:
    """The files below `location`, named by their relative path with slashes.

    Methods raise UserError, with the location, where a remote one cannot be reached, and OSError for local ones.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location).rstrip("/") or "/"
        self.folder: Path | None = None if is_remote(location) else local_path(location)
        """None where it is remote."""
        if self.folder is None:
            self._system, self._root = file_system(self.location)
            self._root = self._root.rstrip("/")

    def list_files(self) -> dict[str, int]:
        """Return the size of every file in bytes; empty where there is no such folder."""
        if self.folder is not None:
            walk = os.walk(self.folder, followlinks=True)
            paths = (Path(parent, name) for parent, _, names in walk for name in names)
            return {path.relative_to(self.folder).as_posix(): _measure(path) for path in paths}
        with self._errors("list"):
            self._system.invalidate_cache()  # the listing that an earlier call keeps
            try:
                found = self._system.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        start = f"{self._root}/"  # keys that end in a slash stand for folders
        return {
            name.removeprefix(start): int(info["size"] or 0)
            for name, info in found.items()
            if name.startswith(start) and not name.endswith("/")
        }

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None where there is none."""
        try:
            if self.folder is not None:
                return (self.folder / name).read_bytes()
            with self._errors("read"):
                content: bytes = self._system.cat_file(f"{self._root}/{name}")
                return content
        except FileNotFoundError:
            return None

    def compute_sha256(self, name: str) -> str:
        """Return the hex SHA-256 of a file."""
        if self.folder is not None:
            return sha256_of(self.folder / name)
        with self._errors("read"), self._system.open(f"{self._root}/{name}") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole."""
        if self.folder is not None:
            with atomic_write(self.folder / name, "wb") as file:
                file.write(content)
        else:
            with self._errors("write"):
                self._system.pipe_file(f"{self._root}/{name}", content)

    def put(self, source: Path, name: str) -> None:
        """Copy a local file, whole; where both are on one file system, by a second link to it."""
        if self.folder is None:
            with self._errors("write"):
                self._system.put_file(str(source), f"{self._root}/{name}")
            return
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
            fsync_folder(target.parent)
        except OSError:  # another file system, one without links, or an older file of this name
            with open(source, "rb") as file, atomic_write(target, "wb") as copy:
                shutil.copyfileobj(file, copy, _BLOCK_BYTES)

    def remove(self, name: str) -> None:
        """Remove a file, and the local folders that this leaves empty."""
        if self.folder is None:
            with self._errors("remove"):
                self._system.rm_file(f"{self._root}/{name}")
            return
        path = self.folder / name
        path.unlink()
        while (path := path.parent) != self.folder and not any(path.iterdir()):
            path.rmdir()

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Each remote file system raises errors of its own: no credentials, no network, no bucket, no rights."""
        try:
            yield
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.location}: cannot {action}: {text}; check address, rights and network") from error


def _measure(path: Path) -> int:
    """Return a file's size in bytes; -1 of a link to nothing."""
    return path.stat().st_size if path.exists() else -1

"""Shards behind URLs (fsspec): fetched whole into a local cache of limited size, verified, and read from there.

All processes of a machine may share the cache. A shard in it is complete and verified. One that is being fetched is a
locked .part file, so that no other process fetches it; a .part file without a lock was left by a killed process. An
evicted shard stays readable to those who have it open.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from transpooler.common import UserError, atomic_write, is_disk_full, local_path
from transpooler.data_pipeline.sources.locations import file_system, is_remote

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FETCH_THREADS = 2
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
_POLL_S = 0.05
_BLOCK_BYTES = 16 << 20


def join(folder: str | Path, name: str) -> str | Path:
    """Return the path or URL of a file in a folder or URL."""
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else local_path(folder) / name


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Local copies of remote shards: their folder, its largest size, and the retries of a failed transfer."""

    folder: Path
    max_bytes: int
    retries: int

    def fetch_files(self, url: str, names: tuple[str, ...]) -> Path:
        """Fetch files of a split, of which the first is the index; returns their folder, a new one for a new index."""
        self.make_folder()
        index: bytes = self._with_retries(f"{url}/{names[0]}", lambda files, path: files.cat_file(path))
        local = self.folder / hashlib.sha256(url.encode() + b"\n" + index).hexdigest()[:24]
        self.make_folder(local)
        for name in names[1:]:
            if not (local / name).is_file():
                with atomic_write(local / name, "wb", unique=True) as file:
                    self._with_retries(f"{url}/{name}", partial(_copy, file))
        with atomic_write(local / names[0], "wb", unique=True) as file:
            file.write(index)
        return local

    def make_folder(self, folder: Path | None = None) -> None:
        """Make the cache's folder, or one in it."""
        try:
            (folder or self.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot make this folder: {error.strerror}; set data.cache") from error

    def exists(self, url: str) -> bool:
        """Whether the file exists."""
        return bool(self._with_retries(url, lambda files, path: files.exists(path)))

    def fetch_shard(self, url: str, path: Path, size_bytes: int, sha256: str) -> Path:
        """Fetch a shard to `path` unless it is there; returns `path`. UserError, with the URL, if that fails."""
        with suppress(FileNotFoundError):
            os.utime(path)  # the time of the last use decides what is evicted
            return path
        self.make_folder(path.parent)  # what cleans temporary folders may have taken it
        with _lock_part_file(path) as part:
            if not path.is_file():  # another process may have been faster
                self._make_room(size_bytes, part)
                self._with_retries(url, partial(_download, part, size_bytes, sha256))
                os.replace(part, path)
        return path

    def _with_retries(self, url: str, action: Callable[[Any, str], Any]) -> Any:
        """Return action(file system, path in it)."""
        pause_s = FIRST_PAUSE_S
        for attempt in range(self.retries + 1):
            try:
                return action(*file_system(url))
            except UserError:
                raise
            except FileNotFoundError:
                raise UserError(f"{url}: no such file; check data.shards, or upload the folder again") from None
            except Exception as error:  # fsspec's file systems raise what their libraries raise
                if isinstance(error, OSError) and is_disk_full(error):
                    raise UserError(
                        f"{self.folder}: the disk is full; lower data.cache_gib or set data.cache"
                    ) from None
                if attempt == self.retries:
                    raise UserError(f"{url}: cannot fetch ({attempt + 1} attempts): {error}") from error
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError

    def _make_room(self, size_bytes: int, part: Path) -> None:
        """Evict the least recently used shards until `size_bytes` fit; then claim them by making `part` so large."""
        if size_bytes > self.max_bytes:
            raise UserError(
                f"{self.folder}: a shard has {size_bytes / 2**30:.3f} GiB, more than data.cache_gib = "
                f"{self.max_bytes / 2**30:.3f}; raise it"
            )
        with open(self.folder / "lock", "w") as lock:
            while True:
                fcntl.flock(lock, fcntl.LOCK_EX)
                files = _list_files(self.folder)
                used = sum(size for _, size, _ in files)
                for path, size, _ in sorted(files, key=lambda file: file[2]):
                    if used + size_bytes <= self.max_bytes:
                        break
                    if path.suffix == ".tar" or (path != part and _is_abandoned(path)):
                        path.unlink(missing_ok=True)
                        used -= size
                if used + size_bytes <= self.max_bytes:
                    os.truncate(part, size_bytes)
                    return
                fcntl.flock(lock, fcntl.LOCK_UN)
                time.sleep(_POLL_S)  # others are fetching shards, which can be evicted when they are complete


class RemoteSplit:
    """The shards of one split behind a URL."""

    def __init__(self, url: str, cache: Cache, names: tuple[str, ...]) -> None:
        self.url, self.cache = url.rstrip("/"), cache
        self.local = cache.fetch_files(self.url, names)
        self._threads: ThreadPoolExecutor | None = None
        self._threads_of, self._asked = 0, set[str]()

    def shard(self, entry: dict[str, Any]) -> Path:
        """Return the local path of a shard (an entry of the index); fetches it first if necessary."""
        name = entry["name"]
        self._asked.discard(name)
        return self.cache.fetch_shard(f"{self.url}/{name}", self.local / name, entry["size_bytes"], entry["sha256"])

    def fetch_ahead(self, entry: dict[str, Any]) -> None:
        """Fetch a shard in the background; errors are raised when it is read."""
        if entry["name"] in self._asked or (self.local / entry["name"]).is_file():
            return
        if self._threads is None or self._threads_of != os.getpid():  # threads do not survive a fork
            self._threads = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
            self._threads_of = os.getpid()
        self._asked.add(entry["name"])
        self._threads.submit(self.shard, entry)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_threads": None, "_asked": set()}


def fetch_folder(url: str, cache: Cache, names: tuple[str, ...]) -> Path:
    """Fetch small files of a remote folder (a tokenizer), again if the first has changed; only that must exist."""
    found = tuple(name for name in names[1:] if cache.exists(f"{url}/{name}"))
    return cache.fetch_files(url, (names[0], *found))


def fetch_tokenizer(shards: str | Path, cache: Cache | None) -> Path:
    """Return the local folder of the tokenizer of shards; fetches it first if they are remote."""
    folder = join(shards, "tokenizer")
    if isinstance(folder, Path):
        return folder
    assert cache is not None, "shards behind a URL need a cache"
    return fetch_folder(str(folder), cache, TOKENIZER_FILES)


def _copy(file: IO[bytes], files: Any, path: str) -> None:
    """Replace the content of an open file by that of a remote one."""
    file.seek(0)  # an earlier attempt may have failed half-way
    file.truncate()
    with files.open(path, "rb", block_size=_BLOCK_BYTES) as remote:
        shutil.copyfileobj(remote, file, _BLOCK_BYTES)


def _download(part: Path, size_bytes: int, sha256: str, files: Any, path: str) -> None:
    """Download into the bytes that `part` has claimed, so that its size stays as `_make_room` counted it."""
    digest, size = hashlib.sha256(), 0
    with files.open(path, "rb", block_size=_BLOCK_BYTES) as remote, open(part, "r+b") as local:
        while block := remote.read(_BLOCK_BYTES):
            digest.update(block)
            local.write(block)
            size += len(block)
        local.flush()
        os.fsync(local.fileno())
    if size != size_bytes:
        raise OSError(f"damaged shard: {size} bytes instead of {size_bytes}")
    if digest.hexdigest() != sha256:
        raise OSError("damaged shard: its SHA-256 is not that of the index")


def _list_files(folder: Path) -> list[tuple[Path, int, int]]:
    """List (path, bytes, time of last use in ns) of the shards, and of .part files with the bytes they claim."""
    found = {}
    # .part first: a shard that is finished meanwhile is seen twice, rather than never, and counts once.
    for suffix in (".part", ".tar"):
        for path in folder.glob(f"*/*{suffix}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found[str(path).removesuffix(".part")] = (path, status.st_size, status.st_mtime_ns)
    return list(found.values())


@contextmanager
def _lock_part_file(path: Path) -> Iterator[Path]:
    """Lock the .part file of a shard, after another process or thread that fetches it; removed if it is left."""
    part = path.with_name(path.name + ".part")
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == part.stat().st_ino:
                break
        os.close(descriptor)  # the other process has renamed or removed it
    try:
        yield part
    finally:
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == part.stat().st_ino:
                part.unlink()
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a forked process may have it open, too
        os.close(descriptor)


def _is_abandoned(part: Path) -> bool:
    """Whether the process that wrote a .part file has ended."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True

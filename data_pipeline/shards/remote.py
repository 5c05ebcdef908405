"""Shards behind URLs (fsspec): fetched whole into a bounded local cache, checked against the index, read from there.

The cache may be shared by all processes of a machine. A shard in it is complete and was verified; one that is being
fetched is a locked .part file, so nobody fetches it twice, and what a killed process left is told by its free lock. An
evicted shard stays readable to whoever has it open.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from transpooler.common.errors import UserError
from transpooler.common.files import atomic_write, is_disk_full
from transpooler.data_pipeline.sources.locations import file_system, is_remote

FETCH_THREADS = 2
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
_POLL_S = 0.05
_BLOCK_BYTES = 16 << 20


def join(folder: str | Path, name: str) -> str | Path:
    """A path below a folder or URL; of the same kind as `folder`."""
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else Path(folder).expanduser() / name


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where remote shards are kept, how much of them, and how hard to try."""

    folder: Path
    max_bytes: int
    retries: int

    def split(self, url: str, names: tuple[str, ...]) -> Path:
        """Fetch `names` (the first of them the index) of a split; the local folder, another one for another index."""
        index: bytes = self._with_retries(f"{url}/{names[0]}", _read)
        local = self.folder / hashlib.sha256(url.encode() + b"\n" + index).hexdigest()[:24]
        local.mkdir(exist_ok=True)
        for name in names[1:]:
            if not (local / name).is_file():
                with atomic_write(local / name, "wb", unique=True) as file:
                    self._with_retries(f"{url}/{name}", lambda target, file=file: _copy(target, file))
        with atomic_write(local / names[0], "wb", unique=True) as file:
            file.write(index)
        return local

    def exists(self, url: str) -> bool:
        """Whether there is such a file."""

        def found(target: str) -> bool:
            files, path = file_system(target)
            return bool(files.exists(path))

        return bool(self._with_retries(url, found))

    def shard(self, url: str, path: Path, size_bytes: int, sha256: str) -> Path:
        """`path`, fetched from `url` unless it is there; UserError naming the URL if that cannot be."""
        with suppress(FileNotFoundError):
            os.utime(path)  # the time of the last use decides what is evicted
            return path
        with _part_file(path) as part:
            if not path.is_file():  # else another process was faster
                self._make_room(size_bytes, part)
                self._with_retries(url, lambda target: _download(target, part, size_bytes, sha256))
                os.replace(part, path)
        return path

    def _with_retries(self, url: str, action: Any) -> Any:
        pause_s = FIRST_PAUSE_S
        for attempt in range(self.retries + 1):
            try:
                return action(url)
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
        """Evict shards, those used least recently first, until `size_bytes` more fit; then claim them in `part`."""
        if size_bytes > self.max_bytes:
            raise UserError(
                f"{self.folder}: a shard has {size_bytes / 2**30:.3f} GiB, more than data.cache_gib = "
                f"{self.max_bytes / 2**30:.3f}; raise it"
            )
        with open(self.folder / "lock", "w") as lock:
            while True:
                fcntl.flock(lock, fcntl.LOCK_EX)
                files = _sizes(self.folder)
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
                time.sleep(_POLL_S)  # others are fetching; what they finish can go


class RemoteSplit:
    """The shards of one split behind a URL."""

    def __init__(self, url: str, cache: Cache, names: tuple[str, ...]) -> None:
        self.url, self.cache = url.rstrip("/"), cache
        cache.folder.mkdir(parents=True, exist_ok=True)
        self.local = cache.split(self.url, names)
        self._threads: ThreadPoolExecutor | None = None
        self._threads_of, self._asked = 0, set[str]()

    def shard(self, entry: dict[str, Any]) -> Path:
        """Local path of a shard (an entry of the index), fetched if need be."""
        name = entry["name"]
        self._asked.discard(name)
        return self.cache.shard(f"{self.url}/{name}", self.local / name, entry["size_bytes"], entry["sha256"])

    def fetch_ahead(self, entry: dict[str, Any]) -> None:
        """Fetch a shard in the background; failures show when it is read."""
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
    """Small files of a remote folder (a tokenizer), of which the first must exist; fetched anew whenever it changed."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    found = tuple(name for name in names[1:] if cache.exists(f"{url}/{name}"))
    return cache.split(url, (names[0], *found))


def _copy(url: str, file: IO[bytes]) -> None:
    """Replace the content of an open file by that of a remote one."""
    files, path = file_system(url)
    file.seek(0)  # an earlier attempt may have failed half-way
    file.truncate()
    with files.open(path, "rb", block_size=_BLOCK_BYTES) as remote:
        shutil.copyfileobj(remote, file, _BLOCK_BYTES)


def _read(url: str) -> bytes:
    files, path = file_system(url)
    content: bytes = files.cat_file(path)
    return content


def _download(url: str, part: Path, size_bytes: int, sha256: str) -> None:
    """Copy over the claimed bytes of `part`, whose size therefore stays what `_make_room` counted."""
    files, path = file_system(url)
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


def _sizes(folder: Path) -> list[tuple[Path, int, int]]:
    """(path, bytes, time of last use in ns) of shards and of what is claimed for those being fetched."""
    found = {}
    # In this order: a shard that is finished meanwhile is seen twice, not missed, and counts once.
    for suffix in (".part", ".tar"):
        for path in folder.glob(f"*/*{suffix}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found[str(path).removesuffix(".part")] = (path, status.st_size, status.st_mtime_ns)
    return list(found.values())


@contextmanager
def _part_file(path: Path) -> Iterator[Path]:
    """The locked .part file of a shard: waits while another process or thread fetches it; removed if still there."""
    part = path.with_name(path.name + ".part")
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == part.stat().st_ino:
                break
        os.close(descriptor)  # its owner renamed or removed it while we waited
    try:
        yield part
    finally:
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == part.stat().st_ino:
                part.unlink()
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would not do where a forked process has it, too
        os.close(descriptor)


def _is_abandoned(part: Path) -> bool:
    """Whether the process that wrote a .part file is gone."""
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

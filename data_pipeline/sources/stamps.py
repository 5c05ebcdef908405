"""What an input was when it was read: a description in which another or changed one differs.

Of a local file: size, time of change, SHA-256. Of a remote one: size, and what its file system says of the content.
Of a dataset: its revision, or the files of its folder.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from transpooler.common import sha256_of
from transpooler.data_pipeline.sources.locations import DATASETS, dataset_options, file_system, is_remote

Stamp = dict[str, Any]
_OF_CONTENT = ("ETag", "etag", "md5Hash", "xet_hash", "blob_id", "generation", "mtime", "created")
"""Of what file systems say of a file: what changes with its content, and reads the same in a listing as alone."""


def describe_inputs(locations: Iterable[str], known: dict[str, Stamp]) -> Iterator[Stamp]:
    """Describe each input. `known` descriptions are taken where nothing has changed: no file is hashed twice."""
    stamps = _stamp_all(locations)
    for location, now in stamps.items():
        before = known.get(location, {})
        if before.items() >= now.items():
            yield before
        else:
            yield now if "version" in now else {**now, "sha256": sha256_of(Path(location))}


def find_changed(recorded: Iterable[Stamp]) -> Iterator[str]:
    """Yield the inputs that are no longer as described: by their stamps or, of local files, their contents."""
    described = {item["path"]: item for item in recorded}
    for location, now in _stamp_all(described).items():
        before = described[location]
        if "sha256" not in before or now["size_bytes"] != before["size_bytes"]:
            is_same = now == before
        else:
            is_same = now["mtime_ns"] == before["mtime_ns"] or sha256_of(Path(location)) == before["sha256"]
        if not is_same:
            yield location


def _stamp_all(locations: Iterable[str]) -> dict[str, Stamp]:
    """Describe inputs without reading them, in their order."""
    stamps: dict[str, Stamp] = {}
    remote: list[str] = []
    for location in locations:
        stamps[location] = {"path": location}
        if location.startswith(DATASETS):
            stamps[location] |= {"size_bytes": None, "version": _dataset_version(location)}
        elif is_remote(location):
            remote.append(location)
        else:
            status = os.stat(location)
            stamps[location] |= {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    for location, size, version in _look_up(remote):
        stamps[location] |= {"size_bytes": size, "version": version}
    return stamps


def _look_up(urls: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """Yield (URL, size, version) of remote files, asked anew; those that share a folder take one listing of it."""
    folders: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        folders[url.rpartition("/")[0]].append(url)
    for files in folders.values():
        system, first = file_system(files[0])
        folder = first.rpartition("/")[0]
        system.invalidate_cache(folder)
        listed: dict[str, Any] = {}
        if len(files) > 1 and not _is_web(system):
            with suppress(Exception):  # some may read, but not list; each system says so in its own way
                listed = {item["name"]: item for item in system.ls(folder, detail=True)}
        for url in files:
            path = file_system(url)[1]
            info = listed.get(path) or system.info(path)
            yield url, info["size"], _version(system, path, info)


def _version(system: Any, path: str, info: dict[str, Any]) -> str:
    found = None if _is_web(system) else next((info[key] for key in _OF_CONTENT if info.get(key)), None)
    return str(found or system.ukey(path))


def _is_web(system: Any) -> bool:
    """Whether it is a web server: its listings are pages with links, and its ETags may differ by the server's host."""
    return "http" in system.protocol


def _dataset_version(location: str) -> str:
    name, options = dataset_options(location)
    if not os.path.isdir(name):
        return options.get("revision", "")
    files = sorted(path for path in Path(name).rglob("*") if path.is_file())
    states = [f"{path.relative_to(name)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()

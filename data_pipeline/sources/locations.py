"""Where documents come from: local paths, globs, fsspec URLs (s3://, gs://, hf://) and `datasets` datasets.

A location is a string, as given or as a glob expanded it. `datasets://NAME?split=S` is anything that
`datasets.load_dataset` takes: a hub id or a local folder (datasets:///abs/folder),
with config= and revision= if needed.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

from transpooler.common import UserError, local_path
from transpooler.data_pipeline.sources.zstd import open_zstd

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
WHOLE_JSON_SUFFIXES = (".json", ".json.gz", ".json.zst")
CSV_SUFFIXES = (".csv", ".csv.gz", ".csv.zst")
SUFFIXES = (*JSON_SUFFIXES, ".jsonl.gathered", *WHOLE_JSON_SUFFIXES, *CSV_SUFFIXES, ".parquet", ".tar", ".txt")
"""Names of inputs; BookSum's script calls JSON Lines .jsonl.gathered."""
IDS = "?ids="
DATASETS = "datasets://"


def is_remote(location: str | Path) -> bool:
    """Whether this is a URL and not a path of this machine."""
    return "://" in str(location)


def resolve_paths(patterns: Iterable[str], key: str = "input", folder: str | None = None) -> list[str]:
    """Expand paths, globs and URLs to files, each once; UserError if one is missing, unreadable or unknown.

    The patterns keep their order, the matches of a glob are sorted. GLOB?ids=FILE means the matches whose names,
    without their endings, are lines of the file. `key` names the setting in errors ("": none); what is relative lies in
    `folder`.
    """
    prefix = f"{key}: " if key else ""
    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith(DATASETS):
            found.append(pattern)
            continue
        files, _, ids = pattern.partition(IDS)
        files = _place(files, folder)
        matches = (_match_remote if is_remote(files) else _match_local)(files, prefix)
        found += _select(matches, _place(ids, folder), prefix) if ids else matches
    return list(dict.fromkeys(found))


@contextmanager
def open_location(location: str) -> Iterator[IO[bytes]]:
    """Open a local or remote file for reading bytes; .gz and .zst files are decompressed."""
    with _open_raw(location) as raw:
        if location.endswith(".gz"):
            import gzip

            with gzip.open(raw) as file:
                yield file  # type: ignore[misc]
        elif location.endswith(".zst"):
            with open_zstd(raw) as file:
                yield file
        else:
            yield raw


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it. UserError: unknown protocol or missing package."""
    import fsspec

    protocol = url.split("://", 1)[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        remedy = "pip install 'transpooler[s3]'" if protocol in ("s3", "s3a") else str(error)
        raise UserError(f"{url}: {protocol}:// needs one more package: {remedy}") from error
    except ValueError as error:
        raise UserError(f"{url}: unknown kind of URL ({error}); use s3://, gs://, hf:// or a local path") from error


def dataset_options(location: str) -> tuple[str, dict[str, str]]:
    """Split a datasets:// location into name or folder, and options (split, config, revision)."""
    name, _, query = location.removeprefix(DATASETS).partition("?")
    options = dict(parse_qsl(query))
    if unknown := options.keys() - {"split", "config", "revision"}:
        raise UserError(f"{location}: unknown option {min(unknown)}; use split, config, revision")
    return name, options


def _place(name: str, folder: str | None) -> str:
    """A path, glob or URL as it is seen from the working folder."""
    if folder is None or is_remote(name) or local_path(name).is_absolute():
        return name
    if glob.has_magic(name) and not is_remote(folder):
        folder = glob.escape(folder)
    return f"{folder.rstrip('/')}/{name}"


def _select(files: list[str], ids: str, prefix: str) -> list[str]:
    """The files that a list of ids names, in the list's order; UserError if one of them is missing."""
    by_name = {_name_without_ending(file): file for file in files}
    path = ids if is_remote(ids) else str(local_path(ids))
    try:
        with open_location(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{prefix}{ids}: cannot read the list of ids: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if (name := line.strip()) and name not in by_name:
            raise UserError(f"{prefix}{ids}:{number}: no file is named {name}; check the pattern, or unpack it again")
        if name:
            found.append(by_name[name])
    if not found:
        raise UserError(f"{prefix}{ids}: holds no ids; it must have one a line")
    return found


def _name_without_ending(file: str) -> str:
    name = file.rpartition("/")[2]
    return name.removesuffix(next(suffix for suffix in sorted(SUFFIXES, key=len)[::-1] if name.endswith(suffix)))


def _match_local(pattern: str, prefix: str) -> list[str]:
    literal = local_path(pattern)
    if literal.exists() or not glob.has_magic(pattern):
        matches = [literal]
    else:
        matches = [Path(match) for match in sorted(glob.glob(str(literal), recursive=True))]
        if not matches:
            raise UserError(f"{prefix}no file matches {pattern!r}; check the folder and the pattern")
    for path in matches:
        if not path.exists():
            remedy = "" if path.is_absolute() or not prefix else "; prepare.sources_folder says where relative ones lie"
            raise UserError(f"{prefix}{path}: no such file{remedy}")
        if path.is_dir():
            raise UserError(f"{prefix}{path}: is a folder; name its files, such as {path}/*.jsonl.gz")
        _check_suffix(str(path), prefix)
        if not os.access(path, os.R_OK):
            raise UserError(f"{prefix}{path}: no permission to read it")
    return [str(path) for path in matches]


def _match_remote(pattern: str, prefix: str) -> list[str]:
    system, path = file_system(pattern)
    try:
        names = [path] if system.exists(path) else sorted(system.glob(path)) if glob.has_magic(path) else []
    except Exception as error:  # each file system has its own: no credentials, no network, no bucket
        raise UserError(f"{prefix}{pattern}: cannot list it: {error}; check address and credentials") from error
    if not names:
        raise UserError(f"{prefix}no file matches {pattern!r}; check the address and the pattern")
    urls = [system.unstrip_protocol(name) for name in names]
    for url in urls:
        _check_suffix(url, prefix)
    return urls


def _check_suffix(location: str, prefix: str) -> None:
    if not location.endswith(SUFFIXES):
        raise UserError(f"{prefix}{location}: unknown kind of file; the name must end in {', '.join(SUFFIXES)}")


def _open_raw(location: str) -> IO[bytes]:
    if is_remote(location):
        system, path = file_system(location)
        return system.open(path, "rb", block_size=8 << 20)
    return open(location, "rb", buffering=1 << 20)

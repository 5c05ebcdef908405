"""Input files to records, unparsed: JSON Lines, JSON, CSV Parquet, WebDataset tars, text, `datasets`.

Reads record by record, so memory does not grow with the corpus; only .json files that are no JSON Lines are read whole.
A file that cannot be read is a `UserError` that names it and the place; one that is damaged or cut short is a
`DamagedFileError`.
"""

import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from transpooler.common import UserError
from transpooler.data_pipeline.sources.columns import ID_KEYS, Columns
from transpooler.data_pipeline.sources.damage import DamagedFileError
from transpooler.data_pipeline.sources.locations import (
    CSV_SUFFIXES,
    DATASETS,
    WHOLE_JSON_SUFFIXES,
    dataset_options,
    is_remote,
    open_location,
)
from transpooler.data_pipeline.sources.parquet import read_rows
from transpooler.data_pipeline.sources.tables import holds_lines, read_csv_rows, read_json_items
from transpooler.data_pipeline.sources.tars import read_samples

Record = tuple[str, int, Any]
"""Location, line (or number, 1-based), and what stands there: bytes of JSON, a mapping, or why it cannot be read."""


def read_records(location: str, columns: Columns) -> Iterator[Record]:
    """Yield the records of one file, without parsing them. Raises DamagedFileError; UserError if it cannot be read."""
    for record in _name_problems(location, _read_any(location, columns)):
        yield from _take_apart(record, columns.lists) if columns.lists else (record,)


def read_lines(location: str, name: str | None = None) -> Iterator[Record]:
    """Yield the lines that are not blank, with their numbers, 1-based; errors call the file `name`. Raises as above."""
    yield from _name_problems(name or location, _read_lines(location))


def _read_any(location: str, columns: Columns) -> Iterator[Record]:
    if location.startswith(DATASETS):
        yield from _read_dataset(location)
    elif location.endswith(".parquet"):
        with open_location(location) as file:
            rows = read_rows(file, columns.source.keys, columns.other_keys)
            yield from ((location, number, row) for number, row in enumerate(rows, start=1))
    elif location.endswith(".tar"):
        with open_location(location) as file:
            yield from ((location, number, sample) for number, sample in enumerate(read_samples(file), start=1))
    elif location.endswith(CSV_SUFFIXES):
        with open_location(location) as file:
            yield from ((location, line, row) for line, row in read_csv_rows(location, file))
    elif location.endswith(WHOLE_JSON_SUFFIXES) and not _holds_lines(location):
        with open_location(location) as file:
            yield from ((location, number, item) for number, item in read_json_items(location, file))
    elif location.endswith(".txt") and not _holds_json(location):
        yield from _read_text(location, columns)
    else:
        yield from _read_lines(location)


def _take_apart(record: Record, lists: Sequence[str]) -> Iterator[Record]:
    """A record for each item of these lists: the item's keys beside the record's own, or the item in the list's place.

    A record without any of the lists goes on as it is, so that the missing keys are told.
    """
    location, line, value = record
    if isinstance(value, bytes):
        with suppress(ValueError, RecursionError):  # `parse` says why
            value = json.loads(value)
    if not isinstance(value, dict) or not any(isinstance(value.get(key), list) for key in lists):
        yield record
        return
    items = [(key, item) for key in lists if isinstance(value.get(key), list) for item in value[key]]
    if not items:
        yield location, line, "no_items"
    shared = {key: each for key, each in value.items() if key not in lists}
    name = next((value[key] for key in ID_KEYS if value.get(key)), f"{PurePosixPath(location).name}:{line}")
    name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    for number, (key, item) in enumerate(items, start=1):
        own = item if isinstance(item, dict) else {key: item}
        yield location, line, shared | own | {"id": f"{name}#{number}"}


def _name_problems(name: str, records: Iterator[Record]) -> Iterator[Record]:
    """Turn the exceptions of all the libraries that read inputs into one line that names file and place."""
    number = 0
    try:
        for record in records:
            number = record[1]
            yield record
    except UserError:
        raise
    except Exception as error:
        where, text = f"{name}:{number + 1}", (str(error) or type(error).__name__).splitlines()[0]
        if _is_damage(error, name):
            kind = next((kind for suffix, kind in _KINDS.items() if name.endswith(suffix)), "JSON Lines")
            remedy = "download or compress it again" if kind in ("gzip", "zstd") else "download it again"
            raise DamagedFileError(f"{where}: broken {kind} file ({text}); {remedy}") from error
        text = getattr(error, "strerror", None) or text
        remedy = "; check network and credentials, and run the same command again" if is_remote(name) else ""
        raise UserError(f"{where if number else name}: cannot read: {text}{remedy}") from error


def _is_damage(error: Exception, name: str) -> bool:
    """Whether the file is to blame, and not the disk, the network or a permission."""
    if isinstance(error, EOFError | zlib.error | tarfile.TarError) or type(error).__name__ == "ZstdError":
        return True
    if isinstance(error, OSError):  # those of gzip and of pyarrow's files have no number; those of networks may not
        return error.errno is None and (type(error).__name__ == "BadGzipFile" or not is_remote(name))
    return type(error).__module__.partition(".")[0] == "pyarrow"


_KINDS = {".gz": "gzip", ".zst": "zstd", ".parquet": "Parquet", ".tar": "tar"}


def _read_lines(location: str) -> Iterator[Record]:
    with open_location(location) as file:
        for line, data in enumerate(file, start=1):
            if line == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which JSON forbids
            if not data.endswith(b"\n") and _is_cut(data):
                raise EOFError("its last line ends inside a record")
            if data.strip():
                yield location, line, data


def _is_cut(line: bytes) -> bool:
    """Whether this is the beginning of a JSON object, or zeros that a download left."""
    line = line.strip()
    if not line.startswith(b"{"):
        return bool(line) and not line.strip(b"\0")
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return not line.endswith(b"}") or error.pos >= len(line.decode())
    except (ValueError, RecursionError):
        return not line.endswith(b"}")
    return False


def _holds_lines(location: str) -> bool:
    with open_location(location) as file:
        return holds_lines(file)


def _holds_json(location: str) -> bool:
    """The Cohan et al. files are JSON lines in files named .txt."""
    with open_location(location) as file:
        start = file.readline(1 << 16)
    return start.startswith(b'{"') and any(f'"{key}"'.encode() in start for key in ("article_text", "article_id"))


def _read_text(location: str, columns: Columns) -> Iterator[Record]:
    if columns.target is not None:
        raise UserError(
            f"{location}: a .txt file has no summary; list it under prepare.sources.pretrain, or use .jsonl files"
        )
    with open_location(location) as file:
        yield location, 1, {columns.source.keys[0]: file.read(), "id": PurePosixPath(location).stem}


def _read_dataset(location: str) -> Iterator[Record]:
    import datasets

    name, options = dataset_options(location)
    split = options.get("split", "train")
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(name)
            if split not in splits:
                raise UserError(f"{location}: has no split {split!r}; it has {', '.join(splits)}")
            rows = splits[split]
        elif (Path(name) / "state.json").is_file():
            if not json.loads((Path(name) / "state.json").read_text())["_data_files"]:
                return  # saved without rows, which the library cannot load
            rows = datasets.load_from_disk(name)
            if "split" in options and str(rows.split) != split:
                holds = f"the split {rows.split}" if rows.split else "no splits"
                raise UserError(f"{location}: is one saved dataset and holds {holds}; leave ?split= out to read it")
        else:
            revision = options.get("revision")
            rows = datasets.load_dataset(name, options.get("config"), split=split, revision=revision, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield location, number, row
    except UserError:
        raise
    except Exception as error:  # datasets has an exception for every kind of trouble, and fsspec's besides
        raise UserError(
            f"{location}: cannot read it: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error

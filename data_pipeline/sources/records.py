"""Input files to records, unparsed: JSON Lines (plain, .gz, .zst), Parquet, WebDataset tars, text, `datasets`.

Reads record by record, so memory does not grow with the corpus. A file that cannot be read, or is cut short, is a
`UserError` that names it and the place.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from transpooler.common import UserError
from transpooler.data_pipeline.sources.locations import DATASETS, dataset_options, open_location

SOURCE_KEYS = ("article", "document", "text", "article_text", "sections", "txt")
TARGET_KEYS = ("abstract", "summary", "highlights", "abstract_text")
ID_KEYS = ("id", "article_id", "__key__")
_PARQUET_ROWS = 256

Record = tuple[str, int, Any]
"""Location, line (or number, 1-based), and what stands there: bytes of JSON, or a mapping."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Keys that may hold document and summary; the first that a record has is used. No targets: read no summaries."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]

    @classmethod
    def choose(cls, source_column: str | None, target_column: str | None, require_target: bool) -> "Columns":
        """Use the given columns; None stands for SOURCE_KEYS or TARGET_KEYS."""
        targets = ((target_column,) if target_column else TARGET_KEYS) if require_target else ()
        return cls((source_column,) if source_column else SOURCE_KEYS, targets)


def read_records(location: str, columns: Columns) -> Iterator[Record]:
    """Yield the records of one file, without parsing them."""
    try:
        if location.startswith(DATASETS):
            yield from _read_dataset(location)
        elif location.endswith(".parquet"):
            yield from _read_parquet(location, columns)
        elif location.endswith(".tar"):
            yield from _read_tar(location)
        elif location.endswith(".txt") and not _holds_json(location):
            yield from _read_text(location, columns)
        else:
            yield from read_lines(location)
    except OSError as error:
        raise UserError(f"{location}: cannot read: {error.strerror or error}") from error


def read_lines(location: str) -> Iterator[Record]:
    """Yield the lines that are not blank, with their numbers, 1-based."""
    line = 0
    try:
        with open_location(location) as file:
            for data in file:
                line += 1
                if line == 1:
                    data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which JSON forbids
                if data.strip():
                    yield location, line, data
    except OSError as error:
        if location.endswith(".gz") and error.errno is None:  # gzip.BadGzipFile
            raise _broken_file(location, line, "gzip", error) from error
        raise UserError(f"{location}:{line + 1}: cannot read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise _broken_file(location, line, "gzip", error) from error
    except Exception as error:
        if type(error).__name__ == "ZstdError":
            raise _broken_file(location, line, "zstd", error) from error
        raise


def _broken_file(location: str, line: int, kind: str, error: Exception) -> UserError:
    return UserError(f"{location}:{line + 1}: broken {kind} file ({error}); download or compress it again")


def _holds_json(location: str) -> bool:
    """The Cohan et al. files are JSON lines in files named .txt."""
    with open_location(location) as file:
        start = file.readline(1 << 16)
    return start.startswith(b'{"') and any(f'"{key}"'.encode() in start for key in ("article_text", "article_id"))


def _read_text(location: str, columns: Columns) -> Iterator[Record]:
    if columns.targets:
        raise UserError(
            f"{location}: a .txt file has no summary; list it under prepare.sources.pretrain, or use .jsonl files"
        )
    with open_location(location) as file:
        yield location, 1, {columns.sources[0]: file.read(), "id": PurePosixPath(location).stem}


def _read_parquet(location: str, columns: Columns) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with open_location(location) as file, pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            wanted = [name for name in names if name in (*columns.sources, *columns.targets, *ID_KEYS)]
            if not set(wanted) & set(columns.sources):
                wanted = names[:1]  # no column is known: one record of all keys suffices for the error
                number += 1
                yield location, number, dict.fromkeys(names)
                return
            for batch in table.iter_batches(_PARQUET_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield location, number, row
    except pyarrow.ArrowException as error:
        text = str(error).splitlines()[0]
        raise UserError(f"{location}: broken Parquet file near row {number + 1} ({text}); download it again") from error


def _read_tar(location: str) -> Iterator[Record]:
    """Yield the samples of a WebDataset tar: the keys of KEY.json, and other members under their extension."""
    import tarfile

    number, key = 0, None
    sample: dict[str, Any] = {}
    try:
        with open_location(location) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if key != (folder, stem):
                    if sample:
                        number += 1
                        yield location, number, sample
                    key, sample = (folder, stem), {"__key__": stem}
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if extension == "json":
                    sample.update(_parse_json_member(data))
                else:
                    sample[extension.removesuffix(".txt")] = data
            if sample:
                yield location, number + 1, sample
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{location}: broken tar after sample {number} ({error}); download it again") from error


def _parse_json_member(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_dataset(location: str) -> Iterator[Record]:
    import datasets

    name, options = dataset_options(location)
    split = options.get("split", "train")
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(name)
            rows = rows[split] if isinstance(rows, datasets.DatasetDict) else rows
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

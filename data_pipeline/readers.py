"""Input files to raw documents: JSON Lines (plain, .gz, .zst), Parquet, WebDataset tars, text, `datasets`.

Reads record by record, so memory does not grow with the corpus. A few bad records of a corpus are yielded as `Dropped`,
each with its reason; a file that is bad as a whole is a `UserError` (missing, empty, cut short, none of the keys,
mostly broken). Two halves: `records` only reads (one process), `parse` makes documents of records (any process).
"""

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import UserError
from data_pipeline.sources import DATASETS, JSON_SUFFIXES, dataset_options, opened, resolve_paths

__all__ = ["Columns", "Dropped", "RawDocument", "parse", "read_documents", "records", "resolve_paths"]

SOURCE_KEYS = ("article", "document", "text", "article_text", "sections", "txt")
TARGET_KEYS = ("abstract", "summary", "highlights", "abstract_text")
ID_KEYS = ("id", "article_id", "__key__")
BROKEN = ("bad_json", "not_utf8", "wrong_type")
"""Reasons that speak against the file: it is refused when they are more than half of its records."""

_SENTENCE_MARKS = re.compile(r"^\s*<S>\s?|\s?</S>\s*$")
_PARQUET_ROWS = 256

Record = tuple[str, int, Any]
"""Location, line (or number, 1-based), and what stands there: bytes of JSON, or a mapping."""


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document as text, with where it came from."""

    id: str
    source: str
    target: str | None
    path: str
    line: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that is left out, and why."""

    reason: str
    path: str
    line: int


@dataclass(frozen=True, slots=True)
class Columns:
    """Keys under which document and summary are looked for, first present wins; no targets: summaries are not read."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]

    @classmethod
    def of(cls, source_column: str | None, target_column: str | None, require_target: bool) -> "Columns":
        """A column of None recognises SOURCE_KEYS / TARGET_KEYS."""
        targets = ((target_column,) if target_column else TARGET_KEYS) if require_target else ()
        return cls((source_column,) if source_column else SOURCE_KEYS, targets)


@dataclass
class FileVerdict:
    """What the records of one file say about it; `judge` when all were seen."""

    counts: Counter[str] = field(default_factory=Counter)
    keys: list[str] = field(default_factory=list)
    first_bad: str = ""

    def see(self, record: Record, result: RawDocument | Dropped) -> None:
        reason = result.reason if isinstance(result, Dropped) else "kept"
        if reason in BROKEN and not self.first_bad:
            self.first_bad = f"{result.path}:{result.line}: {reason}"
        if not self.keys and isinstance(result, Dropped) and reason.startswith("missing"):
            value = record[2] if isinstance(record[2], dict) else json.loads(record[2])
            self.keys = [key for key in value if key != "__key__"]
        self.counts[reason] += 1

    def judge(self, location: str, columns: Columns) -> None:
        """Raise when the file's records say that it is not what it was taken for."""
        total, broken = self.counts.total(), sum(self.counts[reason] for reason in BROKEN)
        if total == 0:
            raise UserError(f"{location}: holds no records, only blank lines")
        if self.first_bad == f"{location}:1: not_utf8" and location.endswith(JSON_SUFFIXES):
            raise UserError(f"{location}:1: not UTF-8; convert the file, for example with iconv")
        if broken * 2 > total and not location.endswith(".txt"):
            raise UserError(f"{self.first_bad}: {broken} of {total} records of this file are broken; mend or remove it")
        sides = (("source", columns.sources, "source_column"), ("target", columns.targets, "target_column"))
        for name, keys, option in sides:
            if self.counts[f"missing_{name}"] and self.counts[f"missing_{name}"] + broken == total:
                what = f"key {keys[0]!r}" if len(keys) == 1 else f"any of the keys {', '.join(keys)}"
                have = ", ".join(self.keys) or "none"
                raise UserError(f"{location}: no record has {what}; its keys are: {have}; set prepare.{option}")


def read_documents(
    locations: Iterable[str | Path], source_column: str | None, target_column: str | None, require_target: bool
) -> Iterator[RawDocument | Dropped]:
    """Yield every record of the files in order, as a document or with the reason why it is none.

    A column of None recognises SOURCE_KEYS / TARGET_KEYS, first present wins. Without `require_target` summaries are
    not read: `target` is None. Raises UserError, naming file and line, where a file is bad as a whole.
    """
    columns = Columns.of(source_column, target_column, require_target)
    for location in map(str, locations):
        verdict = FileVerdict()
        for record in records(location, columns):
            result = parse(record, columns)
            verdict.see(record, result)
            if verdict.counts["not_utf8"] == verdict.counts.total() == 1:
                verdict.judge(location, columns)
            yield result
        verdict.judge(location, columns)


def records(location: str, columns: Columns) -> Iterator[Record]:
    """What stands in one file, record by record, hardly looked at."""
    try:
        if location.startswith(DATASETS):
            yield from _dataset_records(location)
        elif location.endswith(".parquet"):
            yield from _parquet_records(location, columns)
        elif location.endswith(".tar"):
            yield from _tar_records(location)
        elif location.endswith(".txt") and not _holds_json(location):
            yield from _text_record(location, columns)
        else:
            yield from _lines(location)
    except OSError as error:
        raise UserError(f"{location}: cannot read: {error.strerror or error}") from error


def parse(record: Record, columns: Columns) -> RawDocument | Dropped:
    """The document of one record, or the reason why there is none."""
    location, line, value = record
    if isinstance(value, bytes):
        try:
            value = json.loads(value.decode("utf-8"))
        except UnicodeDecodeError:
            return Dropped("not_utf8", location, line)
        except (ValueError, RecursionError):
            return Dropped("bad_json", location, line)
    if not isinstance(value, dict):
        return Dropped("wrong_type", location, line)
    texts: list[str | None] = []
    for name, keys in (("source", columns.sources), ("target", columns.targets)):
        text, problem = _side(value, keys, name) if keys else (None, None)
        if problem:
            return Dropped(problem, location, line)
        texts.append(text)
    fallback = f"{PurePosixPath(location).name}:{line}"
    name = next((str(value[key]) for key in ID_KEYS if isinstance(value.get(key), str | int)), fallback)
    return RawDocument(name if _encodable(name) else fallback, texts[0] or "", texts[1], location, line)


def _side(value: dict[str, Any], keys: tuple[str, ...], name: str) -> tuple[str | None, str | None]:
    """Text under the first key present, or the reason why there is none."""
    content = next((value[key] for key in keys if value.get(key) is not None), None)
    if content is None:
        return None, f"missing_{name}"
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None, "not_utf8"
    text = _text(content)
    if text is None:
        return None, "wrong_type"
    if not text.strip():
        return None, f"empty_{name}"
    return (text, None) if _encodable(text) else (None, "not_utf8")


def _text(value: Any) -> str | None:
    """A string as it is; sentences (and sections of sentences, as in `scientific_papers`) joined; else None."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [_text(part) for part in value]
        if all(part is not None for part in parts):
            return "\n".join(_SENTENCE_MARKS.sub("", part) for part in parts if part is not None)
    return None


def _encodable(text: str) -> bool:
    """False for text with lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _lines(location: str) -> Iterator[Record]:
    """Non-blank lines with their numbers, 1-based."""
    line = 0
    try:
        with opened(location) as file:
            for data in file:
                line += 1
                if line == 1:
                    data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the JSON
                if data.strip():
                    yield location, line, data
    except OSError as error:
        if location.endswith(".gz") and error.errno is None:  # gzip.BadGzipFile
            raise _broken(location, line, "gzip", error) from error
        raise UserError(f"{location}:{line + 1}: cannot read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise _broken(location, line, "gzip", error) from error
    except Exception as error:
        if type(error).__name__ == "ZstdError":
            raise _broken(location, line, "zstd", error) from error
        raise


def _broken(location: str, line: int, kind: str, error: Exception) -> UserError:
    return UserError(f"{location}:{line + 1}: broken {kind} file ({error}); download or compress it again")


def _holds_json(location: str) -> bool:
    """The Cohan et al. files are JSON lines in files named .txt."""
    with opened(location) as file:
        start = file.readline(1 << 16)
    return start.startswith(b'{"') and any(f'"{key}"'.encode() in start for key in ("article_text", "article_id"))


def _text_record(location: str, columns: Columns) -> Iterator[Record]:
    if columns.targets:
        raise UserError(
            f"{location}: a .txt file has no summary; list it under prepare.sources.pretrain, or use .jsonl files"
        )
    with opened(location) as file:
        yield location, 1, {columns.sources[0]: file.read(), "id": PurePosixPath(location).stem}


def _parquet_records(location: str, columns: Columns) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with opened(location) as file, pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            wanted = [name for name in names if name in (*columns.sources, *columns.targets, *ID_KEYS)]
            if not set(wanted) & set(columns.sources):
                wanted = names[:1]  # none of them: the verdict will name the keys
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


def _tar_records(location: str) -> Iterator[Record]:
    """Samples of a WebDataset tar: the keys of KEY.json, and other members under their extension."""
    import tarfile

    number, key = 0, None
    sample: dict[str, Any] = {}
    try:
        with opened(location) as file, tarfile.open(fileobj=file, mode="r|") as tar:
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
                    sample.update(_json_member(data))
                else:
                    sample[extension.removesuffix(".txt")] = data
            if sample:
                yield location, number + 1, sample
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{location}: broken tar after sample {number} ({error}); download it again") from error


def _json_member(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _dataset_records(location: str) -> Iterator[Record]:
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

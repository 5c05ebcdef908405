"""Records to raw documents.

A record that is no document is yielded as `Dropped`, with the reason. A file that is bad as a whole (it has none of the
keys, or most records are broken) is a `UserError`. One process reads records; any number of processes may `parse` them.
"""

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from transpooler.common import PAGE_BREAK, UserError, join_hyphenated, list_some
from transpooler.data_pipeline.sources.columns import ID_KEYS, Columns, NoText, is_encodable, kind_of
from transpooler.data_pipeline.sources.damage import DamagedFileError
from transpooler.data_pipeline.sources.locations import JSON_SUFFIXES
from transpooler.data_pipeline.sources.records import Record, read_records

BROKEN = ("bad_json", "not_utf8", "wrong_type", "duplicate_member", "wrong_fields")
"""Reasons that count as broken: a file is refused if more than half of its records are."""

_SHOWN_KEYS = 20


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
    detail: str = field(default="", compare=False)
    """Which key, and what it holds."""


@dataclass
class FileVerdict:
    """Counts the outcomes of one file's records. Call `judge` after the last record."""

    counts: Counter[str] = field(default_factory=Counter)
    keys: list[str] = field(default_factory=list)
    first_bad: str = ""

    def add(self, record: Record, result: RawDocument | Dropped) -> None:
        """Count one record, with what `parse` made of it."""
        reason = result.reason if isinstance(result, Dropped) else "kept"
        if isinstance(result, Dropped) and reason in BROKEN and not self.first_bad:
            self.first_bad = f"{result.path}:{result.line}: {reason}{result.detail and f' ({result.detail})'}"
        if not self.keys and isinstance(result, Dropped) and reason.startswith("missing"):
            value = record[2] if isinstance(record[2], dict) else json.loads(record[2])
            self.keys = [key for key in value if key != "__key__"]
        self.counts[reason] += 1

    def judge(self, location: str, columns: Columns) -> None:
        """Raise DamagedFileError if the records show that the file is broken; UserError if its keys are others."""
        total, broken = self.counts.total(), sum(self.counts[reason] for reason in BROKEN)
        if self.first_bad == f"{location}:1: not_utf8" and location.endswith(JSON_SUFFIXES):
            raise DamagedFileError(f"{location}:1: not UTF-8; convert the file, for example with iconv")
        if broken * 2 > total and not location.endswith(".txt"):
            counts = f"{broken} of {total} records of this file are broken"
            raise DamagedFileError(f"{self.first_bad}: {counts}; mend or remove it")
        for column in columns.sides:
            if self.counts[f"missing_{column.side}"] and self.counts[f"missing_{column.side}"] + broken == total:
                have = list_some(self.keys, _SHOWN_KEYS) or "none"
                what = f"a value for {column.wanted}" if set(column.keys) & set(self.keys) else column.wanted
                remedy = f"set prepare.{column.side}_column"
                raise UserError(f"{location}: no record has {what}; its keys are: {have}; {remedy}")


def read_documents(
    locations: Iterable[str | Path], columns: Columns, skip_damaged: bool = False
) -> Iterator[RawDocument | Dropped]:
    """Yield a document or a `Dropped` for each record of the files, in order.

    Without a target column `target` is None. Raises UserError, with file and line, if a whole file is bad;
    `skip_damaged` leaves damaged files out whole, and for that reads each file twice.
    """
    for location in map(str, locations):
        if not (skip_damaged and find_damage(location, columns)):
            yield from _read_file(location, columns)


def find_damage(location: str, columns: Columns) -> DamagedFileError | None:
    """Read a file to its end, and return what is wrong with it as a whole."""
    try:
        deque(_read_file(location, columns), maxlen=0)
    except DamagedFileError as error:
        return error
    return None


def _read_file(location: str, columns: Columns) -> Iterator[RawDocument | Dropped]:
    verdict = FileVerdict()
    for record in read_records(location, columns):
        result = parse(record, columns)
        verdict.add(record, result)
        if verdict.counts["not_utf8"] == verdict.counts.total() == 1:
            verdict.judge(location, columns)
        yield result
    verdict.judge(location, columns)


def parse(record: Record, columns: Columns) -> RawDocument | Dropped:
    """Return the document of one record, or the reason why it is none."""
    location, line, value = record
    if isinstance(value, str):
        return Dropped(value, location, line)
    if isinstance(value, bytes):
        try:
            value = json.loads(value.decode("utf-8"))
        except UnicodeDecodeError:
            return Dropped("not_utf8", location, line)
        except (ValueError, RecursionError):
            return Dropped("bad_json", location, line)
    if not isinstance(value, dict):
        return Dropped("wrong_type", location, line, f"{kind_of(value)}, not an object")
    texts: list[str] = []
    for column in columns.sides:
        text = column.read(value)
        if isinstance(text, NoText):
            return Dropped(text.reason, location, line, text.detail)
        if PAGE_BREAK in text and location.endswith((".txt", ".tar")):
            text = join_hyphenated(text)  # as `summarize` does with files of text
        texts.append(text)
    fallback = f"{PurePosixPath(location).name}:{line}"
    found = next((value[key] for key in ID_KEYS if isinstance(value.get(key), str | int | bytes)), fallback)
    name = found.decode("utf-8", "surrogateescape") if isinstance(found, bytes) else str(found)
    target = texts[1] if len(texts) > 1 else None
    return RawDocument(name if is_encodable(name) else fallback, texts[0], target, location, line)

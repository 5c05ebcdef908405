"""Records to raw documents.

A record that is no document is yielded as `Dropped`, with the reason. A file that is bad as a whole (it has none of the
keys, or most records are broken) is a `UserError`. One process reads records; any number of processes may `parse` them.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from transpooler.common import PAGE_BREAK, UserError, is_blank, join_hyphenated, list_some
from transpooler.data_pipeline.sources.locations import JSON_SUFFIXES
from transpooler.data_pipeline.sources.records import ID_KEYS, Columns, DamagedFileError, Record, read_records

BROKEN = ("bad_json", "not_utf8", "wrong_type", "duplicate_member")
"""Reasons that count as broken: a file is refused if more than half of its records are."""

_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_KINDS |= dict.fromkeys((int, float), "a number")
_SHOWN_KEYS = 20
_SENTENCE_MARKS = re.compile(r"^\s*<S>\s?|\s?</S>\s*$")


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
        sides = (("source", columns.sources, "source_column"), ("target", columns.targets, "target_column"))
        for name, keys, option in sides:
            if self.counts[f"missing_{name}"] and self.counts[f"missing_{name}"] + broken == total:
                what = f"key {keys[0]!r}" if len(keys) == 1 else f"any of the keys {', '.join(keys)}"
                have = list_some(self.keys, _SHOWN_KEYS) or "none"
                lacks = "a value for " if set(keys) & set(self.keys) else ""
                raise UserError(f"{location}: no record has {lacks}{what}; its keys are: {have}; set prepare.{option}")


def read_documents(
    locations: Iterable[str | Path],
    source_column: str | None,
    target_column: str | None,
    require_target: bool,
    skip_damaged: bool = False,
) -> Iterator[RawDocument | Dropped]:
    """Yield a document or a `Dropped` for each record of the files, in order.

    A column of None stands for SOURCE_KEYS or TARGET_KEYS, of which the first that a record has is used. Without
    `require_target` summaries are not read, and `target` is None. Raises UserError, with file and line, if a whole
    file is bad; `skip_damaged` leaves damaged files out whole, and for that reads each file twice.
    """
    columns = Columns.choose(source_column, target_column, require_target)
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
        return Dropped("wrong_type", location, line, f"{_KINDS[type(value)]}, not an object")
    texts: list[str | None] = []
    for name, keys in (("source", columns.sources), ("target", columns.targets)):
        text, problem = _find_text(value, keys, name) if keys else (None, None)
        if problem:
            return Dropped(problem, location, line, _find_no_text(value, keys) if problem == "wrong_type" else "")
        if text and PAGE_BREAK in text and location.endswith((".txt", ".tar")):
            text = join_hyphenated(text)  # as `summarize` does with files of text
        texts.append(text)
    fallback = f"{PurePosixPath(location).name}:{line}"
    found = next((value[key] for key in ID_KEYS if isinstance(value.get(key), str | int | bytes)), fallback)
    name = found.decode("utf-8", "surrogateescape") if isinstance(found, bytes) else str(found)
    return RawDocument(name if _encodable(name) else fallback, texts[0] or "", texts[1], location, line)


def _find_text(value: dict[str, Any], keys: tuple[str, ...], name: str) -> tuple[str | None, str | None]:
    """Return (text, None) from the first key that is present, or (None, reason)."""
    content = next((value[key] for key in keys if value.get(key) is not None), None)
    if content is None:
        return None, f"missing_{name}"
    try:
        text = _join_text(content)
    except UnicodeDecodeError:
        return None, "not_utf8"
    if text is None:
        return None, "wrong_type"
    if is_blank(text):
        return None, f"empty_{name}"
    return (text, None) if _encodable(text) else (None, "not_utf8")


def _find_no_text(value: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Say which part of the first key that is present is no text, such as `article[1] is a number`."""
    path, part = next((key, value[key]) for key in keys if value.get(key) is not None)
    while isinstance(part, list):
        index = next(index for index, item in enumerate(part) if _join_text(item) is None)
        path, part = f"{path}[{index}]", part[index]
    return f"{path} is {_KINDS.get(type(part), type(part).__name__)}, not a text"


def _join_text(value: Any) -> str | None:
    """Return a string as it is, and join (nested) lists of sentences, as in `scientific_papers`; None for the rest."""
    if isinstance(value, bytes):
        return value.decode("utf-8-sig")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [_join_text(part) for part in value]
        if all(part is not None for part in parts):
            return "\n".join(_SENTENCE_MARKS.sub("", part) for part in parts if part is not None)
    return None


def _encodable(text: str) -> bool:
    """Whether UTF-8 can encode the text; lone surrogates, which JSON can spell, it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

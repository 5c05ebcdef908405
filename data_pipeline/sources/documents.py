"""Records to raw documents, or to the reason why there is none.

A few bad records of a corpus are yielded as `Dropped`, each with its reason; a file that is bad as a whole is a
`UserError` (none of the keys, mostly broken). Reading (`records`) is for one process, `parse` for any.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from transpooler.common.errors import UserError
from transpooler.data_pipeline.sources.locations import JSON_SUFFIXES
from transpooler.data_pipeline.sources.records import ID_KEYS, Columns, Record, records

BROKEN = ("bad_json", "not_utf8", "wrong_type")
"""Reasons that speak against the file: it is refused when they are more than half of its records."""

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

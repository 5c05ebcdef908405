"""Input files to raw documents: JSON Lines (.jsonl, .jsonl.gz) and text (.txt, one file = one document).

Reads line by line, so memory does not grow with the corpus. A few bad records of a corpus are yielded as `Dropped`,
each with its reason; a file that is bad as a whole is a `UserError` (missing, empty, cut short, none of the keys,
mostly broken).
"""

import glob
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")
SOURCE_KEYS = ("article", "document", "text", "article_text")
TARGET_KEYS = ("abstract", "summary", "highlights", "abstract_text")
ID_KEYS = ("id", "article_id")
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


def resolve_paths(patterns: Iterable[str], key: str = "input") -> list[Path]:
    """Expand paths and globs to existing, readable, non-empty files of a known kind, without repeats.

    Order: patterns as given, matches of one glob sorted. `key` names the setting in error messages.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        literal = Path(pattern).expanduser()
        if literal.exists() or not glob.has_magic(pattern):
            matches = [literal]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(literal), recursive=True))]
            if not matches:
                raise UserError(f"{key}: no file matches {pattern!r}; check the folder and the pattern")
        for path in matches:
            _check_file(path, key)
            paths.setdefault(path)
    return list(paths)


def read_documents(
    paths: Iterable[Path], source_column: str | None, target_column: str | None, require_target: bool
) -> Iterator[RawDocument | Dropped]:
    """Yield every record of `paths` in order, as a document or with the reason why it is none.

    A column of None recognises SOURCE_KEYS / TARGET_KEYS, first present wins. Without `require_target` summaries are
    not read: `target` is None. Raises UserError, naming file and line, where a file is bad as a whole.
    """
    sources = (source_column,) if source_column else SOURCE_KEYS
    targets = ((target_column,) if target_column else TARGET_KEYS) if require_target else ()
    for path in paths:
        if path.suffix == ".txt":
            yield _read_text(path, require_target)
        else:
            yield from _read_json_lines(path, sources, targets)


def _check_file(path: Path, key: str) -> None:
    if not path.exists():
        raise UserError(f"{key}: {path}: no such file")
    if path.is_dir():
        raise UserError(f"{key}: {path}: is a folder; name its files, such as {path}/*.jsonl.gz")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{key}: {path}: unknown kind of file; the name must end in {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise UserError(f"{key}: {path}: is empty")
    if not os.access(path, os.R_OK):
        raise UserError(f"{key}: {path}: no permission to read it")


def _read_text(path: Path, require_target: bool) -> RawDocument | Dropped:
    if require_target:
        raise UserError(
            f"{path}: a .txt file has no summary; list it under prepare.sources.pretrain, or use .jsonl files"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError:
        return Dropped("not_utf8", str(path), 1)
    if not text.strip():
        return Dropped("empty_source", str(path), 1)
    return RawDocument(path.stem, text, None, str(path), 1)


def _read_json_lines(path: Path, sources: tuple[str, ...], targets: tuple[str, ...]) -> Iterator[RawDocument | Dropped]:
    counts: Counter[str] = Counter()
    first_bad = ""
    keys_seen: list[str] = []
    for line, data in _lines(path):
        record = _parse_line(data)
        if isinstance(record, dict):
            keys_seen = keys_seen or list(record)
            result = _document(record, sources, targets, path, line)
        else:
            result = Dropped(record, str(path), line)
        reason = result.reason if isinstance(result, Dropped) else "kept"
        if reason == "not_utf8" and not counts:
            raise UserError(f"{path}:{line}: not UTF-8; convert the file, for example with iconv")
        if reason in BROKEN and not first_bad:
            first_bad = f"{path}:{line}: {reason}"
        counts[reason] += 1
        yield result
    _judge_file(path, counts, keys_seen, first_bad, sources, targets)


def _judge_file(
    path: Path,
    counts: Counter[str],
    keys_seen: list[str],
    first_bad: str,
    sources: tuple[str, ...],
    targets: tuple[str, ...],
) -> None:
    """Raise when the file's records, all read by now, say that it is not what it was taken for."""
    total, broken = counts.total(), sum(counts[reason] for reason in BROKEN)
    if total == 0:
        raise UserError(f"{path}: holds no records, only blank lines")
    if broken * 2 > total:
        raise UserError(f"{first_bad}: {broken} of {total} records of this file are broken; mend or remove it")
    for name, keys, option in (("source", sources, "source_column"), ("target", targets, "target_column")):
        if counts[f"missing_{name}"] + broken == total:
            what = f"key {keys[0]!r}" if len(keys) == 1 else f"any of the keys {', '.join(keys)}"
            have = ", ".join(keys_seen) or "none"
            raise UserError(f"{path}: no record has {what}; its keys are: {have}; set prepare.{option}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their numbers, 1-based."""
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    line = 0
    try:
        with opener(path, "rb") as file:
            for data in file:
                line += 1
                if line == 1:
                    data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the JSON
                if data.strip():
                    yield line, data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}:{line + 1}: broken gzip file ({error}); download or compress it again") from error
    except OSError as error:
        raise UserError(f"{path}:{line + 1}: cannot read: {error.strerror}") from error


def _parse_line(data: bytes) -> dict[str, Any] | str:
    """The JSON object of a line, or the reason why there is none."""
    try:
        record = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "not_utf8"
    except (ValueError, RecursionError):
        return "bad_json"
    return record if isinstance(record, dict) else "wrong_type"


def _document(
    record: dict[str, Any], sources: tuple[str, ...], targets: tuple[str, ...], path: Path, line: int
) -> RawDocument | Dropped:
    texts: list[str | None] = []
    for name, keys in (("source", sources), ("target", targets)):
        if not keys:
            texts.append(None)
            continue
        value = next((record[key] for key in keys if record.get(key) is not None), None)
        text = _text(value)
        if value is None:
            return Dropped(f"missing_{name}", str(path), line)
        if text is None:
            return Dropped("wrong_type", str(path), line)
        if not text.strip():
            return Dropped(f"empty_{name}", str(path), line)
        if not _encodable(text):
            return Dropped("not_utf8", str(path), line)
        texts.append(text)
    name = next((str(record[key]) for key in ID_KEYS if isinstance(record.get(key), str | int)), f"{path.name}:{line}")
    return RawDocument(name if _encodable(name) else f"{path.name}:{line}", texts[0] or "", texts[1], str(path), line)


def _text(value: Any) -> str | None:
    """A string as it is; a list of strings (one a sentence, as in `scientific_papers`) joined; else None."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(_SENTENCE_MARKS.sub("", part) for part in value)
    return None


def _encodable(text: str) -> bool:
    """False for text with lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

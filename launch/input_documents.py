"""Documents named on the command line: text, text extracted from PDF, JSON Lines; read one at a time."""

import codecs
import json
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transpooler.common import PAGE_BREAK, UserError, is_blank, join_hyphenated
from transpooler.data_pipeline.sources.locations import JSON_SUFFIXES, resolve_paths
from transpooler.data_pipeline.text_tokens import Head, head_of

STDIN = "-"
_LOOKED_AT_BYTES = 1 << 20
"""How much of a text is checked before anything is generated; more is read if the model takes more."""
_NO_TEXTS = {
    b"%PDF-": ("a PDF", "pdftotext {} -"),
    b"PK\3\4": ("a Word document (.docx), .odt, .epub or other zip archive", "pandoc -t plain {}"),
    b"\xd0\xcf\x11\xe0": ("a Word document (.doc)", "antiword {}"),
    b"{\\rtf": ("rich text (.rtf)", "pandoc -t plain {}"),
    b"\x1f\x8b": ("compressed by gzip", "gunzip -c {}"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "zstdcat {}"),
    b"BZh": ("compressed by bzip2", "bzcat {}"),
    b"\xfd7zXZ\0": ("compressed by xz", "xzcat {}"),
}
"""How files begin that are no text, what they are, and what makes text of them."""
_JSON = re.compile(r'\s*\[?\s*\{\s*"[^"\n]*"\s*:')


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file, and the name that messages give it."""

    name: str
    path: str
    is_json: bool


@dataclass(frozen=True, kw_only=True)
class InputDocument:
    """One document: `head(n)` gives its first n characters or more, fewer only if the document is shorter."""

    name: str
    head: Head
    id: Any = None
    """The row's own id, unchanged if it is JSON; None for texts."""


def find_inputs(files: Sequence[str], json_input: bool) -> list[InputFile]:
    """The files named on the command line; globs and URLs are resolved if the name is one of JSON Lines.

    Raises UserError for missing files. Nothing is read yet.
    """
    if files.count(STDIN) > 1:
        raise UserError(f"{STDIN}: given twice; standard input can be read only once")
    found = []
    for file in files:
        if os.path.isdir(file):
            raise UserError(f"{file}: is a folder; name its files")
        named_json = file.endswith(JSON_SUFFIXES)
        for path in resolve_paths([file], "") if named_json and not is_stream(file) else [file]:
            name = "standard input" if file == STDIN else path
            found.append(InputFile(name=name, path=path, is_json=json_input or named_json))
    return found


@contextmanager
def spool_streams(inputs: Sequence[InputFile], *, live: bool = False) -> Iterator[list[InputFile]]:
    """Copy standard input and pipes into temporary files, because inputs are read twice: first to check them.

    live: leave those of JSON Lines as they are, to be read once, as their lines arrive.
    """
    with TemporaryDirectory() as folder:
        found = []
        for number, entry in enumerate(inputs):
            path = entry.path
            if is_stream(path) and not (live and entry.is_json):
                path = _spool(entry, Path(folder) / f"{number}-{Path(path).name}")
            found.append(replace(entry, path="/dev/stdin" if path == STDIN else path))
        yield found


def count_documents(inputs: Sequence[InputFile], column: str | None) -> int:
    """Count the documents by reading all files once, so that a mistake is found before hours of work.

    Raises UserError naming file and line: no document of a named file is skipped.
    """
    return sum(1 for _ in read_documents(inputs, column))


def read_documents(inputs: Sequence[InputFile], column: str | None) -> Iterator[InputDocument]:
    """Every document, one at a time."""
    for entry in inputs:
        if entry.is_json:
            yield from _read_rows(entry, column)
        else:
            yield _read_text(entry)


def is_stream(path: str) -> bool:
    """Whether this can be read only once: standard input, a pipe, a device."""
    try:
        return path == STDIN or not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _spool(entry: InputFile, path: Path) -> str:
    try:
        with open(path, "wb") as file:
            if entry.path == STDIN:
                shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                with open(entry.path, "rb") as stream:
                    shutil.copyfileobj(stream, file)
    except OSError as error:
        raise UserError(f"{entry.name}: cannot be copied to {path.parent}: {error.strerror}; set TMPDIR") from None
    if not path.stat().st_size:
        raise UserError(f"{entry.name}: empty; nothing to summarize")
    return str(path)


def _read_rows(entry: InputFile, column: str | None) -> Iterator[InputDocument]:
    from transpooler.data_pipeline.sources.columns import ID_KEYS, Columns
    from transpooler.data_pipeline.sources.documents import Dropped, parse
    from transpooler.data_pipeline.sources.records import read_lines

    columns = Columns.choose(column, require_target=False)
    number = 0
    for _, number, data in read_lines(entry.path, entry.name):
        where = f"{entry.name}:{number}"
        value = _parse_object(where, data)
        row = parse((entry.path, number, value), columns)
        if isinstance(row, Dropped):
            raise UserError(f"{where}: {_explain(row.reason, value, columns.source.names)}")
        name = next((value[key] for key in ID_KEYS if value.get(key) is not None), None)
        yield InputDocument(name=where, head=head_of(row.source), id=_json_value(name))
    if not number:
        raise UserError(f"{entry.name}: holds no documents, only blank lines")


def _json_value(value: Any) -> Any:
    """The value; as text if it holds what Python reads in JSON, and writes, but JSON does not know: NaN, Infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return str(value)
    return value


def _parse_object(where: str, data: bytes) -> dict[str, Any]:
    """The JSON object of one line; UserError names the line."""
    try:
        value = json.loads(data.decode("utf-8").rstrip())
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8; convert the file first (iconv -t UTF-8)") from None
    except (ValueError, RecursionError) as error:
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"{where}: not valid JSON ({what}); mend it: every line must be one object") from None
    if not isinstance(value, dict):
        raise UserError(f'{where}: JSON, but no object; every line must be one, such as {{"text": ...}}')
    return value


def _explain(reason: str, row: dict[str, Any], keys: Sequence[str]) -> str:
    """Why a row holds no document, and the remedy."""
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        looked_for = f"no key {keys[0]!r}" if len(keys) == 1 else f"none of the keys {', '.join(keys)}"
        return f"has {looked_for}; its keys are: {', '.join(row) or 'none'}; name the document's with --column"
    return {
        "wrong_type": f"{key!r} is neither a text nor a list of texts; name another key with --column",
        "not_utf8": f"{key!r} holds half of a surrogate pair, which is no character; mend or remove the line",
    }.get(reason, f"{key!r} is empty; remove the line")


def _read_text(entry: InputFile) -> InputDocument:
    """A file as one document; UserError unless its beginning is text."""
    start = _read_head(entry, 0)
    if _JSON.match(start):
        raise UserError(f"{entry.name}: looks like JSON, not text; --json-input takes one document from every line")
    if is_blank(start) and is_blank(_read_head(entry, os.path.getsize(entry.path))):
        raise UserError(f"{entry.name}: empty document; nothing to summarize")
    return InputDocument(name=entry.name, head=partial(_read_head, entry))


def _read_head(entry: InputFile, num_characters: int) -> str:
    """The file's first `num_characters` or more, fewer if it is shorter; text from pdftotext is cleaned."""
    try:
        with open(entry.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # 4 bytes give at least one character, even after joining ("ß-\n" becomes "ß"); 4 more cover a UTF-8 mark.
            wanted = max(_LOOKED_AT_BYTES, 4 * (num_characters + 1))
            data = file.read(min(wanted, size))
    except OSError as error:
        raise UserError(f"{entry.name}: cannot read: {error.strerror}") from None
    for magic, (kind, command) in _NO_TEXTS.items():
        if data.startswith(magic):
            remedy = command.format(shlex.quote(entry.name))
            raise UserError(f"{entry.name}: {kind}, not text; extract it first: {remedy} | transpooler summarize - ...")
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=len(data) == size)
    except UnicodeDecodeError as error:
        raise UserError(f"{entry.name}: not UTF-8 at byte {error.start}; convert it first (iconv -t UTF-8)") from None
    return join_hyphenated(text) if PAGE_BREAK in text[: _LOOKED_AT_BYTES // 4] else text

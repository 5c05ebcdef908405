"""Documents named on the command line: text, text extracted from PDF, JSON Lines; read one at a time."""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from common.errors import UserError

STDIN_NAME = "standard input"
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_PAGE_BREAK = "\f"
_HYPHENATED = re.compile(r"(?<=[a-zß-öø-ÿ])-\n(?=[a-zß-öø-ÿ])")


@contextmanager
def spooled(files: Sequence[str], json_input: bool) -> Iterator[list[str]]:
    """The files, with standard input ("-") put into a temporary one: it is read twice, first to check it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{STDIN_NAME}{'.jsonl' if json_input else ''}"
        if "-" in files:
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            if not path.stat().st_size:
                raise UserError(f"{STDIN_NAME}: empty; nothing to summarize")
        yield [str(path) if file == "-" else file for file in files]


def count_documents(files: Sequence[str], column: str | None) -> int:
    """Read all files once, so that a mistake is found before hours of work; how many documents they hold.

    Raises UserError naming file and line: what was asked for by name is never skipped.
    """
    return sum(1 for _ in read_documents(files, column))


def read_documents(files: Sequence[str], column: str | None) -> Iterator[tuple[str, str]]:
    """(name, text) of every document, one at a time."""
    for file in files:
        name = STDIN_NAME if Path(file).name.startswith(STDIN_NAME) else file
        if file.endswith(JSON_LINES):
            yield from _json_documents(file, name, column)
        else:
            try:
                yield name, _text(name, Path(file).read_bytes())
            except OSError as error:
                raise UserError(f"{file}: cannot read: {error.strerror}") from None


def _json_documents(file: str, name: str, column: str | None) -> Iterator[tuple[str, str]]:
    from data_pipeline.readers import Dropped, read_documents
    from data_pipeline.sources import resolve_paths

    paths = resolve_paths([file], "FILE")
    for item in read_documents(paths, source_column=column, target_column=None, require_target=False):
        where = f"{name}:{item.line}"
        if isinstance(item, Dropped):
            remedy = "; name the document's key with --column" if item.reason == "missing_source" else ""
            raise UserError(f"{where}: cannot be summarized ({item.reason}){remedy}")
        yield where, _checked(where, item.source)


def _text(name: str, data: bytes) -> str:
    if data.startswith(b"%PDF-"):
        raise UserError(f"{name}: a PDF, not text; extract it first: pdftotext {name} - | transpooler summarize - ...")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}; convert it first (iconv -t UTF-8)") from None
    return _checked(name, extracted(text) if _PAGE_BREAK in text else text)


def extracted(text: str) -> str:
    """Text from pdftotext, whose pages end in form feeds: words hyphenated over lines are joined, page breaks go."""
    return _HYPHENATED.sub("", text.replace(_PAGE_BREAK, "\n"))


def _checked(name: str, text: str) -> str:
    if not text.strip():
        raise UserError(f"{name}: empty document; nothing to summarize")
    return text

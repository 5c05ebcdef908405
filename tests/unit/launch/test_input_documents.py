"""Documents given to `summarize`: kinds of files, what is mended, what is refused, and how much is held at once."""

import gzip
import io
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.launch.input_documents import (
    InputDocument,
    count_documents,
    find_inputs,
    join_hyphenated,
    read_documents,
    spool_streams,
)

ALL = 10**9


def documents(*files: object, column: str | None = None, json_input: bool = False) -> list[InputDocument]:
    return list(read_documents(find_inputs([str(file) for file in files], json_input), column))


def texts(found: Sequence[InputDocument]) -> list[str]:
    return [document.head(ALL) for document in found]


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "standard input notes").write_text("another")
    lines = '{"text": "first", "id": 7}\n\n{"text": ["sec", "ond"], "article_id": "x"}\n'
    (tmp_path / "b.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(lines)
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(lines)
    names = ["a.txt", "standard input notes", "b.jsonl", "c.jsonl.gz"]
    found = documents(*(tmp_path / name for name in names))
    assert texts(found) == ["a text", "another", "first", "sec\nond", "first", "sec\nond"]
    assert [document.name.removeprefix(f"{tmp_path}/") for document in found[:4]] == [
        *names[:2],
        "b.jsonl:1",
        "b.jsonl:3",
    ]
    assert [document.id for document in found] == [None, None, 7, "x", 7, "x"]
    assert texts(documents(tmp_path / "b.json", json_input=True)) == ["first", "sec\nond"]
    assert texts(documents(tmp_path / "*.jsonl")) == ["first", "sec\nond"]


def test_standard_input_is_a_text_or_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = b'{"text": "a"}\n{"text": "b"}\n'
    for content, json_input, names in (
        (b"a text", False, ["standard input"]),
        (rows, True, ["standard input:1", "standard input:2"]),
    ):
        standard_input(monkeypatch, content)
        with spool_streams(find_inputs(["-"], json_input)) as files:
            assert count_documents(files, None) == len(names)
            assert [document.name for document in read_documents(files, None)] == names
        assert not Path(files[0].path).exists()
    standard_input(monkeypatch, b"")
    with pytest.raises(UserError, match="standard input: empty"), spool_streams(find_inputs(["-"], False)):
        pass
    with pytest.raises(UserError, match="given twice"):
        find_inputs(["-", "x.txt", "-"], False)


def test_pipes_are_read_once(tmp_path: Path) -> None:
    for name, content, expected in (("pipe", "text", ["text"]), ("pipe.jsonl", '{"text": "a"}\n', ["a"])):
        os.mkfifo(tmp_path / name)
        writer = threading.Thread(target=(tmp_path / name).write_text, args=(content,), daemon=True)
        writer.start()
        with spool_streams(find_inputs([str(tmp_path / name)], False)) as files:
            assert count_documents(files, None) == 1
            assert texts(list(read_documents(files, None))) == expected
            assert next(read_documents(files, None)).name.startswith(str(tmp_path / name))
        writer.join()


@pytest.mark.parametrize("start", ['{"text": "a"}\n', '\n [{"id": 1,\n', '{\n  "text": "a"\n}', '{"a": {"b": 1}}'])
def test_json_is_not_taken_for_text(tmp_path: Path, start: str) -> None:
    (tmp_path / "a.json").write_text(start)
    with pytest.raises(UserError, match=r"a.json: looks like JSON, not text; --json-input"):
        documents(tmp_path / "a.json")


@pytest.mark.parametrize("start", ["{'a': 1}", "{{ template }}", '{"quoted"} text', "[1] A. Author", '"a": 1'])
def test_text_is_not_taken_for_json(tmp_path: Path, start: str) -> None:
    (tmp_path / "a.txt").write_text(start)
    assert texts(documents(tmp_path / "a.txt")) == [start]


def test_text_extracted_from_pdf(tmp_path: Path) -> None:
    assert join_hyphenated("selec-\ntion of X-\nRay\n\fpage two") == "selection of X-\nRay\n\npage two"
    assert join_hyphenated("a state-of-the-\nart") == "a state-of-the-art"
    assert join_hyphenated("state-\nof-the-art") == "state-of-the-art"
    assert join_hyphenated("exam-\nple exam-\nple-") == "example example-"
    (tmp_path / "paper.txt").write_text("a hyphen-\nated word\f")
    (tmp_path / "plain.txt").write_text("left as-\nis")
    assert texts(documents(tmp_path / "paper.txt", tmp_path / "plain.txt")) == ["a hyphenated word\n", "left as-\nis"]


def test_the_beginning_of_a_text_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transpooler.launch.input_documents._LOOKED_AT_BYTES", 64)
    text = "naïve 漢字 exam-\nple\n" * 40 + "😀" * 2000 + "ß-\n" * 4000 + "ß"
    (tmp_path / "plain.txt").write_text(text, encoding="utf-8-sig")
    (tmp_path / "paper.txt").write_text("\f" + text)
    (tmp_path / "late.txt").write_bytes(b"\n" * 500 + b"begins late")
    (tmp_path / "bad.txt").write_bytes(b"x" * 30_000 + b"\xe9")
    plain, paper, late, bad = documents(*(tmp_path / f"{name}.txt" for name in ("plain", "paper", "late", "bad")))
    whole = join_hyphenated("\f" + text)
    for size in (0, 1, 50, 333, 2000, 5000, len(whole) - 1, len(whole), len(text)):
        assert (plain.head(size)[:size], paper.head(size)[:size]) == (text[:size], whole[:size])
        assert len(plain.head(size)) >= min(size, len(text))
        assert len(paper.head(size)) >= min(size, len(whole))
    assert len(plain.head(20)) < 400
    (tmp_path / "marked.txt").write_text("😀" * 99, encoding="utf-8-sig")
    assert len(documents(tmp_path / "marked.txt")[0].head(50)) >= 50
    assert late.head(ALL).strip() == "begins late"
    assert bad.head(1000).startswith("x" * 1000)
    with pytest.raises(UserError, match=r"bad.txt: not UTF-8 at byte 30000"):
        bad.head(30_000)


def test_a_pdf_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 ...\xff")
    with pytest.raises(UserError, match=r"paper.pdf: a PDF, not text; extract it first: pdftotext"):
        documents(tmp_path / "paper.pdf")


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"text": 5}, None, "'text' is neither a text nor a list of texts; name another key with --column"),
        ({"text": "  "}, None, "'text' is empty; remove the line"),
        ({"text": "\ud800"}, None, "'text' holds half of a surrogate pair"),
        (
            {"id": 1, "body": "b"},
            None,
            "has none of the keys article, document, text, article_text, sections, txt; its keys are: id, body; ",
        ),
        (
            {"id": 1, "body": "b"},
            "nope",
            "has no key 'nope'; its keys are: id, body; name the document's with --column",
        ),
        ({}, "nope", "its keys are: none"),
        ([1], None, "JSON, but no object"),
    ],
)
def test_rows_that_hold_no_document(tmp_path: Path, row: object, column: str | None, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good", "nope": "good"}}\n{json.dumps(row)}\n')
    with pytest.raises(UserError) as caught:
        documents(tmp_path / "a.jsonl", column=column)
    assert f"{tmp_path}/a.jsonl:2: " in str(caught.value)
    assert message in str(caught.value)


def test_documents_are_read_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": "fine"}\n{"text"\n')
    found = read_documents(find_inputs([str(tmp_path / "a.jsonl")], False), None)
    assert [next(found).head(9), next(found).head(9)] == ["good", "fine"]
    with pytest.raises(UserError, match=r"a.jsonl:3: not valid JSON \(Expecting ':' delimiter at column 8\)"):
        next(found)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\x03\x04\x14", "Word document.*pandoc -t plain "),
        (b"\x1f\x8b\x08", "compressed by gzip.*gunzip -c "),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd.*zstdcat "),
        (b"%PDF-1.7", "a PDF.*pdftotext .* - |"),
        (b"\0" * 50, "empty document"),
        ("\u200b \u2060".encode(), "empty document"),
    ],
)
def test_what_is_no_text_is_named_with_what_makes_text_of_it(tmp_path: Path, start: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(start)
    with pytest.raises(UserError, match=message):
        documents(tmp_path / "a.txt")


def test_ids_are_json_whatever_python_reads(tmp_path: Path) -> None:
    ids = ("NaN", "[1, -Infinity]", "1e999", "2.5")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": {name}, "text": "a"}}\n' for name in ids))
    assert [document.id for document in documents(tmp_path / "a.jsonl")] == ["nan", "[1, -inf]", "inf", 2.5]
    (tmp_path / "a.jsonl").write_text('{"text": "\\u0000\\u200b"}')
    with pytest.raises(UserError, match="'text' is empty"):
        documents(tmp_path / "a.jsonl")

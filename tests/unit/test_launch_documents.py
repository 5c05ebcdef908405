"""Documents given to `summarize`: kinds of files, what is mended, what is refused, and how much is held at once."""

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from launch.documents import count_documents, extracted, read_documents, spooled


def test_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("first", "second"))
    (tmp_path / "b.jsonl").write_text(lines)
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(lines)
    files = [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.jsonl.gz")]
    found = list(read_documents(files, None))
    assert [text for _, text in found] == ["a text", "first", "second", "first", "second"]
    assert found[2][0] == f"{tmp_path / 'b.jsonl'}:2"
    assert count_documents(files, None) == 5


def test_standard_input_is_a_text_or_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for json_input, names in ((False, ["standard input"]), (True, ["standard input:1", "standard input:2"])):
        content = io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n{"text": "b"}\n'))
        monkeypatch.setattr(sys, "stdin", content)
        with spooled(["-"], json_input) as files:
            assert count_documents(files, None) == len(names)
            assert [name for name, _ in read_documents(files, None)] == names
        assert not Path(files[0]).exists()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UserError, match="standard input: empty"), spooled(["-"], False):
        pass


def test_text_extracted_from_pdf(tmp_path: Path) -> None:
    assert extracted("selec-\ntion of X-\nRay\n\fpage two") == "selection of X-\nRay\n\npage two"
    (tmp_path / "paper.txt").write_text("a hyphen-\nated word\f")
    assert next(iter(read_documents([str(tmp_path / "paper.txt")], None)))[1] == "a hyphenated word\n"
    (tmp_path / "plain.txt").write_text("left as-\nis")
    assert next(iter(read_documents([str(tmp_path / "plain.txt")], None)))[1] == "left as-\nis"


def test_a_pdf_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 ...")
    with pytest.raises(UserError, match=r"paper.pdf: a PDF, not text; extract it first: pdftotext"):
        count_documents([str(tmp_path / "paper.pdf")], None)


def test_documents_are_read_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": "fine"}\n{"text": 5}\n')
    documents = read_documents([str(tmp_path / "a.jsonl")], None)
    assert [next(documents)[1], next(documents)[1]] == ["good", "fine"]
    with pytest.raises(UserError, match=r"a.jsonl:3: cannot be summarized \(wrong_type\)"):
        next(documents)

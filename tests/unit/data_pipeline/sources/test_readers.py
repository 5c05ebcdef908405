"""Readers: what is kept, what is dropped and why, and which files are refused in one clear line."""

import gzip
import json
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.documents import Dropped, RawDocument, read_documents
from transpooler.data_pipeline.sources.locations import resolve_paths

GOOD = {"article": "the source text", "abstract": "the summary"}


def write_lines(path: Path, lines: list) -> Path:
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, require_target: bool = True, source: str | None = None) -> list:
    return list(read_documents([path], Columns.choose(source, require_target=require_target)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_documents_carry_text_and_origin(tmp_path, name):
    path = write_lines(tmp_path / name, [GOOD, b"", {**GOOD, "id": "paper-7"}])
    assert read(path) == [
        RawDocument(f"{name}:1", "the source text", "the summary", str(path), 1),
        RawDocument("paper-7", "the source text", "the summary", str(path), 3),
    ]


def test_lists_of_sentences_are_joined(tmp_path):
    record = {"article_id": "x", "article_text": ["one .", "two ."], "abstract_text": ["<S> three . </S>"]}
    (document,) = read(write_lines(tmp_path / "a.jsonl", [record]))
    assert (document.id, document.source, document.target) == ("x", "one .\ntwo .", "three .")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"{broken", "bad_json"),
        (b'{"article": "\xff"}', "not_utf8"),
        (b'{"article": "\\ud800", "abstract": "b"}', "not_utf8"),
        (b"[1]", "wrong_type"),
        ({**GOOD, "article": 3}, "wrong_type"),
        ({"abstract": "b"}, "missing_source"),
        ({"article": "a"}, "missing_target"),
        ({**GOOD, "article": " \n"}, "empty_source"),
        ({**GOOD, "abstract": ""}, "empty_target"),
    ],
)
def test_a_bad_record_is_dropped_with_its_reason(tmp_path, record, reason):
    path = write_lines(tmp_path / "a.jsonl", [GOOD, record, GOOD])
    assert read(path)[1] == Dropped(reason, str(path), 2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b"{broken"], r"a\.jsonl:1: bad_json: 1 of 1 records"),
        ([GOOD, b"{", b"{"], r"a\.jsonl:2: bad_json: 2 of 3 records"),
        ([b"\xff\xfe", GOOD], r"a\.jsonl:1: not UTF-8"),
        ([b"[1]"], r"a\.jsonl:1: wrong_type \(a list, not an object\): 1 of 1"),
        ([{**GOOD, "abstract": {"x": 1}}], r"a\.jsonl:1: wrong_type \(abstract is an object, not a text\): 1 of 1"),
        ([{**GOOD, "article": ["a", ["b", 3]]}], r"wrong_type \(article\[1\]\[1\] is a number, not a text\)"),
        ([{"body": "x", "abstract": "y"}], r"article.*its keys are: body, abstract; set prepare.source_column"),
        ([{"article": "x", "tldr": "y"}], r"its keys are: article, tldr; set prepare.target_column"),
    ],
)
def test_a_file_bad_as_a_whole_is_refused(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read(write_lines(tmp_path / "a.jsonl", lines))


def test_named_column_that_is_absent(tmp_path):
    with pytest.raises(UserError, match="no record has key 'body'"):
        read(write_lines(tmp_path / "a.jsonl", [GOOD]), source="body")


def test_a_gzip_file_cut_short_names_the_line(tmp_path):
    path = write_lines(tmp_path / "a.jsonl.gz", [GOOD] * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz:\d+: broken gzip"):
        read(path)


def test_text_files(tmp_path):
    path = tmp_path / "report.txt"
    path.write_text("one document\nof two lines", encoding="utf-8")
    assert read(path, require_target=False)[0].source == "one document\nof two lines"
    with pytest.raises(UserError, match=r"report\.txt.*no summary.*pretrain"):
        read(path)
    path.write_bytes(b"\xff")
    assert read(path, require_target=False) == [Dropped("not_utf8", str(path), 1)]


def test_paths_and_globs(tmp_path):
    first, second = (write_lines(tmp_path / name, [GOOD]) for name in ("a.jsonl", "b.jsonl"))
    assert resolve_paths([str(second), str(tmp_path / "*.jsonl")]) == [str(second), str(first)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "no such file"),
        ("*.txt", "no file matches"),
        ("a.pdf", r"must end in \.jsonl, \.jsonl\.gz, .*\.txt"),
        ("", "is a folder"),
    ],
)
def test_unusable_paths(tmp_path, name, message):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(UserError, match=f"prepare.sources.train: .*{message}"):
        resolve_paths([str(tmp_path / name)], "prepare.sources.train")


def test_zstd_parquet_tar_and_datasets_give_the_same_documents(tmp_path):
    import io
    import tarfile

    import pyarrow
    import pyarrow.parquet
    import zstandard

    rows = [{**GOOD, "id": f"paper-{i}"} for i in range(3)]
    lines = write_lines(tmp_path / "a.jsonl", rows).read_bytes()
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(lines[:50]) + zstandard.compress(lines[50:]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for row in rows:
            for name, data in (("article.txt", row["article"]), ("json", json.dumps({"abstract": row["abstract"]}))):
                member = tarfile.TarInfo(f"{row['id']}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data.encode()))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/train.jsonl").write_bytes(lines)
    expected = [(row["id"], row["article"], row["abstract"]) for row in rows]
    for name in ("a.jsonl", "b.jsonl.zst", "c.parquet", "d.tar", f"datasets://{tmp_path}/hub?split=train"):
        location = name if "://" in name else str(tmp_path / name)
        found = [
            item
            for item in read_documents([location], Columns.choose(require_target=True))
            if isinstance(item, RawDocument)
        ]
        assert [(item.id, item.source, item.target) for item in found] == expected, name
        assert [item.line for item in found] == [1, 2, 3]


def test_the_published_scientific_papers_files_are_json_in_txt(tmp_path):
    record = {"article_id": "x", "article_text": ["one ."], "abstract_text": ["<S> two . </S>"]}
    path = write_lines(tmp_path / "train.txt", [record, record])
    assert [(item.source, item.target) for item in read(path)] == [("one .", "two .")] * 2

"""Files of JSON and CSV, lists of ids, and the folder in which relative sources lie."""

import gzip
import json
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.documents import Dropped, RawDocument, read_documents
from transpooler.data_pipeline.sources.locations import resolve_paths

ROWS = [{"id": f"p{number}", "article": f'a "{number}",\nb', "abstract": "c"} for number in range(3)]
CSV = "id,article,abstract\n" + "".join('{id},"a ""{n}"",\nb",c\n'.format(id=f"p{n}", n=n) for n in range(3))


def read(path: Path) -> list[RawDocument | Dropped]:
    return list(read_documents([path], Columns.choose(require_target=True)))


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.json", json.dumps(ROWS), [1, 2, 3]),
        ("b.json", json.dumps(ROWS, indent=1), [1, 2, 3]),
        ("c.json", "\ufeff" + "".join(json.dumps(row) + "\n" for row in ROWS), [1, 2, 3]),
        ("d.json.gz", json.dumps(ROWS), [1, 2, 3]),
        ("e.csv", CSV, [2, 4, 6]),
        ("f.csv.gz", "\ufeff" + CSV.replace("\n", "\r\n").replace(",\r\nb", ",\nb"), [2, 4, 6]),
        ("g.jsonl.gathered", "".join(json.dumps(row) + "\n" for row in ROWS), [1, 2, 3]),
    ],
)
def test_every_form_gives_the_same_documents(tmp_path, name, content, lines):
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    expected = [RawDocument(**_row(row), path=str(tmp_path / name), line=n) for row, n in zip(ROWS, lines, strict=True)]
    assert read(tmp_path / name) == expected


def _row(row: dict[str, str]) -> dict[str, str]:
    return {"id": row["id"], "source": row["article"], "target": row["abstract"]}


def test_one_object_over_several_lines_is_one_document(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS[1], indent=2))
    assert read(tmp_path / "a.json") == [RawDocument("p1", 'a "1",\nb', "c", str(tmp_path / "a.json"), 1)]


def test_a_document_of_a_csv_file_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text(f"article,abstract\n{'x' * 200_000},y\n")
    (document,) = read(tmp_path / "a.csv")
    assert isinstance(document, RawDocument)
    assert len(document.source) == 200_000


@pytest.mark.parametrize("content", ["", " \n", "[]"])
def test_a_json_file_without_records_is_counted(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert read(tmp_path / "a.json") == [Dropped("empty_file", str(tmp_path / "a.json"), 1)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            b'{\n "article": "x",\n "abstract": \n}',
            r"a\.json:4: not valid JSON \(Expecting value, column 1\)",
        ),
        ("a.json", b'{"article": "x", "abst', r"a\.json:1: not valid JSON \(Unterminated string"),
        ("a.json", b'[{"article":\n "\xff"}]', r"a\.json:2: not UTF-8"),
        ("a.json", b'["x", "y"]', r"a\.json:1: wrong_type \(a text, not an object\): 2 of 2"),
        ("a.csv", b"article,abstract\nx,y,z\n", r"a\.csv:2: wrong_fields: 1 of 1 records of this file are broken"),
        ("a.csv", b'article,abstract\nx,y\n"x,y\n', r"a\.csv:3: broken CSV file \(unexpected end of data\)"),
        ("a.csv", b"article,abstract\n\xff,y\n", r"a\.csv:2: not UTF-8"),
        (
            "a.csv",
            b"title,abstract\nx,y\n",
            r"a\.csv: no record has any of .*its keys are: title, abstract; set prepare",
        ),
    ],
)
def test_broken_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_broken_row_among_good_ones_is_dropped(tmp_path):
    (tmp_path / "a.csv").write_text("article,abstract\nx,y\n\nz\nx,y\n")
    assert read(tmp_path / "a.csv")[1] == Dropped("wrong_fields", str(tmp_path / "a.csv"), 4)


def test_a_list_of_ids_chooses_files_in_its_order(tmp_path):
    for name in ("GAO-1.2", "GAO-2", "GAO-3"):
        (tmp_path / f"{name}.json").write_text("{}")
    (tmp_path / "train.ids").write_text("GAO-3\n\nGAO-1.2\n")
    pattern = f"{tmp_path}/*.json?ids={tmp_path}/train.ids"
    assert resolve_paths([pattern]) == [str(tmp_path / "GAO-3.json"), str(tmp_path / "GAO-1.2.json")]
    assert resolve_paths(["*.json?ids=train.ids"], folder=str(tmp_path)) == resolve_paths([pattern])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("GAO-1\nGAO-9\n", r"prepare\.sources\.train: .*train\.ids:2: no file is named GAO-9"),
        ("\n", r"train\.ids: holds no ids"),
        (None, r"train\.ids: cannot read the list of ids"),
    ],
)
def test_a_list_of_ids_that_is_wrong_is_told(tmp_path, ids, message):
    (tmp_path / "GAO-1.json").write_text("{}")
    if ids is not None:
        (tmp_path / "train.ids").write_text(ids)
    with pytest.raises(UserError, match=message):
        resolve_paths(["*.json?ids=train.ids"], "prepare.sources.train", str(tmp_path))


def test_relative_sources_lie_in_their_folder_and_others_do_not(tmp_path):
    folder = tmp_path / "with [brackets]"
    folder.mkdir()
    for path in (folder / "a.jsonl", tmp_path / "b.jsonl"):
        path.write_text("{}\n")
    found = resolve_paths(["a.jsonl", "*.jsonl", str(tmp_path / "b.jsonl")], folder=str(folder))
    assert found == [str(folder / "a.jsonl"), str(tmp_path / "b.jsonl")]

"""Columns: templates of keys and objects, lists that are taken apart, and what is said of records without a text."""

import json
from pathlib import Path
from typing import Any

import pytest

from transpooler.common import UserError
from transpooler.data_pipeline.config import PrepareConfig
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.documents import Dropped, RawDocument, read_documents

MEETING = {
    "id": "m1",
    "turns": [{"who": "A", "said": "Hello."}, {"who": "B", "said": ""}, {"who": "C", "said": ["One.", "Two."]}],
    "questions": [{"query": "Who spoke?", "answer": "A and C."}, {"query": "When?", "answer": "Never."}],
}
ASKED: dict[str, Any] = {
    "source_column": "{query}\n\n{turns}",
    "target_column": "answer",
    "source_objects": "{who}: {said}",
    "record_lists": ("questions",),
}


def read(folder: Path, records: list, *, require_target: bool = True, **settings: Any) -> list[RawDocument | Dropped]:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(read_documents([path], Columns.of(PrepareConfig(**settings), require_target=require_target)))


def texts(found: list[RawDocument | Dropped]) -> list[tuple[str, str, str | None]]:
    return [(item.id, item.source, item.target) for item in found if isinstance(item, RawDocument)]


def test_each_item_of_a_list_is_a_document_with_the_keys_of_its_record(tmp_path):
    transcript = "A: Hello.\nB: \nC: One.\nTwo."
    assert texts(read(tmp_path, [MEETING], **ASKED)) == [
        ("m1#1", f"Who spoke?\n\n{transcript}", "A and C."),
        ("m1#2", f"When?\n\n{transcript}", "Never."),
    ]


def test_items_that_are_texts_take_their_lists_place(tmp_path):
    record = {"text": "a b", "summaries": ["one", "two"]}
    found = read(tmp_path, [record], source_column="text", target_column="summaries", record_lists=("summaries",))
    assert texts(found) == [("a.jsonl:1#1", "a b", "one"), ("a.jsonl:1#2", "a b", "two")]


def test_a_record_whose_lists_are_empty_is_counted(tmp_path):
    found = read(tmp_path, [MEETING | {"questions": []}, MEETING], **ASKED)
    assert found[0] == Dropped("no_items", str(tmp_path / "a.jsonl"), 1)
    assert len(texts(found)) == 2


def test_sections_inside_sections_are_written_without_empty_lines(tmp_path):
    inner = {"title": "Inner", "paragraphs": ["Deep.", "Deeper."], "parts": []}
    record = {"report": [{"title": "", "paragraphs": [], "parts": [inner]}, {"title": "Last", "paragraphs": ["End."]}]}
    settings = {"source_column": "report", "source_objects": "{title}\n{paragraphs}\n{parts}"}
    (document,) = read(tmp_path, [record], require_target=False, **settings)
    assert isinstance(document, RawDocument)
    assert document.source == "Inner\nDeep.\nDeeper.\nLast\nEnd."


def test_the_first_name_of_which_a_record_has_all_keys_is_used(tmp_path):
    records = [{"title": "T", "body": "B"}, {"body": "B"}, {"title": None, "body": "B", "text": "X"}]
    found = read(tmp_path, records, require_target=False, source_column=("{title}: {body}", "text", "body"))
    assert [item[1] for item in texts(found)] == ["T: B", "B", "X"]


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        ([{"x": 1}], ASKED, r"no record has all of the keys query, turns; its keys are: x; set prepare.source_column"),
        ([{"turns": "x"}], ASKED, r"no record has a value for all of the keys query, turns; its keys are: turns"),
        ([{"text": {"who": "A"}}], {}, r"a\.jsonl:1: wrong_type \(text is an object, not a text\)"),
        (
            [{"text": [{"speaker": "A"}]}],
            {"source_objects": "{who}: {said}"},
            r"a\.jsonl:1: wrong_type \(text\[0\] is an object without any of the keys who, said\)",
        ),
        (
            [{"text": [{"who": "A", "said": [3]}]}],
            {"source_objects": "{who}: {said}"},
            r"wrong_type \(text\[0\]\.said\[0\] is a number, not a text\)",
        ),
    ],
)
def test_records_without_a_text_are_told(tmp_path, records, settings, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, records, require_target=False, **settings)


def test_objects_and_lists_in_parquet_and_in_lines_give_the_same_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet

    record = MEETING | {"turns": [{"who": "A", "said": "Hello."}, {"who": "C", "said": "Two."}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    columns = Columns.of(PrepareConfig(**ASKED), require_target=True)
    expected = texts(read(tmp_path, [record], **ASKED))
    assert len(expected) == 2
    assert texts(list(read_documents([tmp_path / "a.parquet"], columns))) == expected

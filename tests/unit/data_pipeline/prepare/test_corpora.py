"""The recipes in configs/corpora: each prepares small samples of the form in which its corpus is published."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transpooler.common import UserError
from transpooler.data_pipeline.prepare.inputs import group_locations
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config.load import load_config
from transpooler.trainer.config.presets import preset_names

SPLITS = ("train", "validation", "test")
WORDS = "The committee met on Tuesday and heard a long report about rivers , roads and schools in the north ."
Pairs = list[tuple[str, str]]
Sample = Callable[[Path, str], Pairs]
"""Writes one split into a folder; returns the documents and summaries that preparation must find."""


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def cohan(folder: Path, split: str) -> Pairs:
    """arXiv and PubMed: `article_text`, and `abstract_text` with marks of sentences."""
    name = {"validation": "val"}.get(split, split)
    article = [f"{split} {WORDS}", "we study @xmath0 in detail ."]
    record = {
        "article_id": f"{split}-1",
        "article_text": article,
        "abstract_text": ["<S> we report on rivers . </S>", "<S> they flow . </S>"],
        "labels": None,
        "section_names": ["introduction"],
        "sections": [article],
    }
    lines(folder / f"{name}.txt", [record, record | {"article_id": f"{split}-2", "article_text": []}])
    return [("\n".join(article), "we report on rivers .\nthey flow .")]


def govreport(folder: Path, split: str) -> Pairs:
    """A JSON file a report, of two kinds, and lists of ids."""
    name = {"validation": "valid"}.get(split, split)
    inner = {"section_title": "Inner", "paragraphs": [f"{split} inner {WORDS}"], "subsections": []}
    crs = {
        "id": f"R-{split}",
        "title": "A title",
        "released_date": "2020-01-01",
        "summary": ["First paragraph.", "Second paragraph."],
        "reports": {"section_title": "", "paragraphs": [], "subsections": [inner]},
    }
    gao = {
        "id": f"GAO-{split}",
        "title": "A title",
        "highlight": [
            {"section_title": "What GAO Found", "paragraphs": ["GAO found rivers."], "subsections": []},
            {"section_title": "What GAO Recommends", "paragraphs": ["GAO recommends roads."], "subsections": []},
        ],
        "report": [
            {"section_title": "Letter", "paragraphs": [f"{split} letter {WORDS}"], "subsections": [inner]},
            {"section_title": "Background", "paragraphs": ["One.", "Two."], "subsections": []},
        ],
    }
    for kind, report in (("crs", crs), ("gao", gao)):
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / f"{report['id']}.json").write_text(json.dumps(report, indent=kind == "crs" or None))
        (folder / "split_ids").mkdir(exist_ok=True)
        (folder / "split_ids" / f"{kind}_{name}.ids").write_text(f"{report['id']}\n")
    return [
        (f"Inner\n{split} inner {WORDS}", "First paragraph.\nSecond paragraph."),
        (
            f"Letter\n{split} letter {WORDS}\nInner\n{split} inner {WORDS}\nBackground\nOne.\nTwo.",
            "GAO found rivers.\nGAO recommends roads.",
        ),
    ]


def booksum(folder: Path, split: str) -> Pairs:
    """What gather_data.py writes, with --split_paragraphs and with --join_strings; two summaries of one chapter."""
    name = {"validation": "val"}.get(split, split)
    chapter: dict[str, Any] = {"chapter_path": "all_chapterized_books/1-chapters/1.txt", "book_id": "A Book.chapter 1"}
    records = [
        chapter | {"source": "shmoop", "text": [f"{split} {WORDS}", "It rained."], "summary": ["Rain.", "And roads."]},
        chapter | {"source": "sparknotes", "text": f"{split} {WORDS}\nIt rained.", "summary": "Rain and roads."},
    ]
    lines(folder / f"chapter_summary_aligned_{name}_split.jsonl.gathered", records)
    text = f"{split} {WORDS}\nIt rained."
    return [(text, "Rain.\nAnd roads."), (text, "Rain and roads.")]


def qmsum(folder: Path, split: str) -> Pairs:
    """A meeting a line, with general and specific questions."""
    name = {"validation": "val"}.get(split, split)
    turns = [{"speaker": "The Chair (Mr. A)", "content": f"{split} {WORDS}"}, {"speaker": "B", "content": "Thanks ."}]
    record = {
        "topic_list": [{"topic": "Rivers", "relevant_text_span": [["0", "1"]]}],
        "general_query_list": [{"query": "Summarize the whole meeting.", "answer": "They met."}],
        "specific_query_list": [
            {"query": "What did B say?", "answer": "B thanked the chair.", "relevant_text_span": [["1", "1"]]}
        ],
        "meeting_transcripts": turns,
    }
    lines(folder / f"{name}.jsonl", [record])
    transcript = f"The Chair (Mr. A): {split} {WORDS}\nB: Thanks ."
    return [
        (f"Summarize the whole meeting.\n\n{transcript}", "They met."),
        (f"What did B say?\n\n{transcript}", "B thanked the chair."),
    ]


def summscreen(kind: str, long: str) -> Sample:
    def write(folder: Path, split: str) -> Pairs:
        """An episode a line, in files called .json."""
        name = {"validation": "dev"}.get(split, split)
        record = {
            "Show Title": "A show",
            "Recap": [f"{split} Anna leaves .", "Bert stays ."],
            "Transcript": [f"ANNA : {split} {WORDS}", "( music )"],
        }
        lines(folder / long / f"{kind}_{name}.json", [record])
        return [("\n".join(record["Transcript"]), "\n".join(record["Recap"]))]

    return write


SAMPLES: dict[str, Sample] = {
    "corpora/arxiv": cohan,
    "corpora/pubmed": cohan,
    "corpora/govreport": govreport,
    "corpora/booksum": booksum,
    "corpora/qmsum": qmsum,
    "corpora/summscreen_fd": summscreen("fd", "ForeverDreaming"),
    "corpora/summscreen_tms": summscreen("tms", "TVMegaSite"),
}
OVERRIDES = ["prepare.tokenizer.vocab_size=270", "prepare.workers=1", "prepare.clean.held_out_overlap=null"]


def test_every_recipe_has_a_sample():
    assert {name for name in preset_names() if name.startswith("corpora/")} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_recipe_prepares_what_is_published(tmp_path, name):
    raw, out = tmp_path / "raw", tmp_path / "shards"
    raw.mkdir()
    expected = {split: SAMPLES[name](raw, split) for split in SPLITS}
    config = load_config([name], [*OVERRIDES, f"prepare.sources_folder={raw}", f"prepare.output={out}"])
    report = prepare(config.prepare)
    tokenizer = load_tokenizer(out / "tokenizer")
    for split in SPLITS:
        dataset = ShardDataset(out / split)
        documents = [dataset.read(number) for number in range(len(dataset))]
        found = [(tokenizer.decode(each.source), each.meta["target_text"]) for each in documents]
        assert sorted(found) == sorted(expected[split])
        assert len({each.meta["id"] for each in documents}) == len(documents)
        assert report["splits"][split]["dropped"] == ({"empty_source": 1} if SAMPLES[name] is cohan else {})
    assert prepare(config.prepare) == report  # recognised as finished, whatever lists its settings hold


def test_a_recipe_is_one_command(tmp_path):
    for split in SPLITS:
        qmsum(tmp_path / "raw", split)
    settings = [*OVERRIDES, f"prepare.sources_folder={tmp_path}/raw", f"prepare.output={tmp_path}/shards"]
    command = [sys.executable, "-m", "transpooler", "prepare", "corpora/qmsum", *settings]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert json.loads((tmp_path / "shards/report.json").read_text())["splits"]["test"]["documents"] == 2
    (tmp_path / "raw/val.jsonl").write_text("[1]\n")
    command[-1] += "-2"
    broken = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert broken.returncode == 2
    error = f"transpooler: error: {tmp_path}/raw/val.jsonl:1: wrong_type (a list, not an object): 1 of 1 records"
    assert broken.stderr.strip().splitlines()[-1].startswith(error)


def test_a_recipe_without_its_folder_is_told_what_is_missing():
    with pytest.raises(UserError, match=r"arxiv: no such configuration file; did you mean corpora/arxiv\?"):
        load_config(["arxiv"])
    error = r"prepare\.sources\.train: train\.txt: no such file; prepare\.sources_folder says where relative ones lie"
    with pytest.raises(UserError, match=error):
        prepare(load_config(["corpora/arxiv"]).prepare)


def test_files_of_one_document_are_read_in_groups():
    names = [f"{number}.json" for number in range(501)]
    groups = list(group_locations([*names, "a.jsonl", "b.json"]))
    assert groups == [names[:500], names[500:], ["a.jsonl"], ["b.json"]]


def test_a_damaged_report_is_named_or_left_out(tmp_path):
    for split in SPLITS:
        govreport(tmp_path, split)
    (tmp_path / "crs/R-cut.json").write_text('{"id": "R-cut",\n "summary": ["x"')
    with (tmp_path / "split_ids/crs_train.ids").open("a") as file:
        file.write("R-cut\n")
    overrides = [*OVERRIDES, f"prepare.sources_folder={tmp_path}", f"prepare.output={tmp_path}/shards"]
    with pytest.raises(UserError, match=r"crs/R-cut\.json:2: not valid JSON"):
        prepare(load_config(["corpora/govreport"], overrides).prepare)
    report = prepare(load_config(["corpora/govreport"], [*overrides, "prepare.on_bad_file=skip"]).prepare)
    assert report["splits"]["train"]["dropped"] == {"bad_file": 1}
    assert report["splits"]["train"]["documents"] == 2

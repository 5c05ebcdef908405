"""`evaluation.sources`: a real model's evaluation holds documents as they were read, and the passages of summaries."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import WORDS
from transpooler.data_pipeline.order.corpus import open_dataset
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config.load import config_from_dict, load_config
from transpooler.trainer.evaluation.evaluate import evaluate
from transpooler.trainer.evaluation.generate import decode
from transpooler.trainer.report.judge import write_judge_files

SETTINGS = ["evaluation.sources=true", "generation.max_new_tokens=12", "generation.num_beams=1", "seed=1"]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of shards whose documents have sentences."""
    folder = tmp_path_factory.mktemp("sentences")
    texts = [" ".join(f"The {n} {word} caf\u00e9 \u6f22 is open." for word in WORDS) for n in range(5)]
    documents = [{"article": text, "abstract": f"{n} caf\u00e9s."} for n, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    sources = {split: [str(folder / "a.jsonl")] for split in ("train", "test")}
    values = {"output": str(folder / "shards"), "sources": sources, "tokenizer": {"vocab_size": 300}, "workers": 1}
    prepare(config_from_dict({"prepare": values | {"clean": {"held_out_overlap": None}}}).prepare)
    return [f"data.shards={folder / 'shards'}", "data.validation_split=null"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("prefix", ["[]", "[5, 4]"])
def test_passages_lie_in_the_document_as_it_was_read(
    tiny_settings: list[str], sentences: list[str], tmp_path: Path, prefix: str
) -> None:
    settings = [*tiny_settings, *SETTINGS, *sentences, f"data.source_prefix_ids={prefix}"]
    config = load_config([], settings)
    evaluate(config, model_folder=None, output=tmp_path / "a")
    dataset = open_dataset(config.data, config.data.shards, "test")
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    num_read = config.data.max_source_tokens - 1 - len(config.data.source_prefix_ids)
    found = rows(tmp_path / "a")
    assert len(found) == 5
    num_sources = 0
    for number, row in enumerate(found):
        text = decode(dataset.read(number).source[:num_read], tokenizer)
        assert row["document"] == text
        assert len("".join(sentence["text"] for sentence in row["sentences"])) <= len(row["generated"])
        for source in (source for sentence in row["sentences"] for source in sentence["sources"]):
            passage = text[source["start"] : source["end"]]
            assert re.fullmatch(r" ?The \d \w+ caf\u00e9 \u6f22 is open\.", passage) or text.endswith(passage)  # or cut
            num_sources += passage.endswith("open.")
    assert num_sources > 5
    plain = load_config([], [*settings, "evaluation.sources=false"])
    evaluate(plain, model_folder=None, output=tmp_path / "b")
    assert rows(tmp_path / "b") == [
        {key: value for key, value in row.items() if key not in ("document", "sentences")} for row in found
    ]
    write_judge_files((tmp_path / "a", tmp_path / "b"), tmp_path / "judging", seed=0)
    line = json.loads((tmp_path / "judging" / "judge.jsonl").read_text().splitlines()[0])
    assert line["document"] == found[0]["document"]
    assert sorted(map(bool, line["spans"].values())) == [False, True]

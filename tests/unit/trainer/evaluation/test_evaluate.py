"""Evaluation and summaries with a stand-in model, whose losses and texts are known, on real shards."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from transpooler.common import UserError, read_json
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.model.ops.schedule import PoolingStage
from transpooler.trainer.config import Config
from transpooler.trainer.config.evaluation import GenerationConfig
from transpooler.trainer.config.load import config_from_dict
from transpooler.trainer.evaluation.evaluate import evaluate, print_evaluations
from transpooler.trainer.evaluation.generate import batches
from transpooler.trainer.evaluation.highlights import highlight, stage_names, text_pieces
from transpooler.trainer.evaluation.losses import derangement
from transpooler.trainer.evaluation.rouge import rouge
from transpooler.trainer.evaluation.summarizer import Summarizer

NUM_DOCUMENTS = 11
TEXT = "the naïve café — 😀 serves {tea}\n    and\tcake number"


class EchoModel:
    """Generates the first tokens of its source; its loss counts the target tokens that do not occur in the source."""

    device = torch.device("cpu")

    def __init__(self, pooling: list[dict[str, Any]]) -> None:
        self.stages = [PoolingStage(**stage) for stage in pooling]
        self.config = SimpleNamespace(pooling=pooling, vocab_size=10_000)
        self.batch_sizes: list[int] = []
        self.last_input_ids = torch.empty(0)
        self.last_settings: dict[str, Any] = {}

    def keep(self, keep: float | None) -> None:
        assert keep is None

    def follow(self, schedule: Any) -> None:
        assert schedule is self.stages

    def eval(self) -> "EchoModel":
        return self

    def to(self, _: str) -> "EchoModel":
        return self

    def __call__(self, input_ids: Any, attention_mask: Any, labels: Any, num_items_in_batch: int) -> Any:
        assert num_items_in_batch == 1
        assert bool(((input_ids != 1) == (attention_mask == 1)).all())
        missing = sum(
            sum(token not in set(source) for token in target if token != -100)
            for source, target in zip(input_ids.tolist(), labels.tolist(), strict=True)
        )
        return SimpleNamespace(loss=torch.tensor(float(missing)))

    def generate(self, input_ids: Any, attention_mask: Any, max_new_tokens: int, **settings: Any) -> Any:
        self.last_settings = settings
        self.batch_sizes.append(len(input_ids))
        self.last_input_ids = input_ids
        return input_ids[:, :max_new_tokens]

    def select(self, input_ids: Any, attention_mask: Any) -> Any:
        weights = torch.linspace(0, 1, input_ids.shape[1])[None]
        return SimpleNamespace(stage_weights=[torch.ones_like(weights), weights])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    for split in ("train", "validation", "test"):
        records = [
            {
                "article": f"{TEXT} {number} " + f"word{number} " * 20,
                "abstract": f"word{number} number {number}.",
                "id": f"d{number}",
            }
            for number in range(NUM_DOCUMENTS)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sources = {split: [str(folder / f"{split}.jsonl")] for split in ("train", "validation", "test")}
    clean = {"held_out_overlap": None}  # the splits hold the same documents here
    values = {"output": str(folder / "shards"), "sources": sources, "tokenizer": {"vocab_size": 400}, "workers": 1}
    values["clean"] = clean
    prepare(config_from_dict({"prepare": values}).prepare)
    return folder / "shards"


@pytest.fixture
def config(shards: Path) -> Config:
    return config_from_dict(
        {
            "data": {"shards": str(shards), "max_source_tokens": 60, "max_target_tokens": 12},
            "model": {"pooling": [{"after_layer": 1, "length": 32}, {"after_layer": 2, "length": 8}]},
            "generation": {"batch_size": 4, "max_new_tokens": 9},
        }
    )


@pytest.fixture
def model(shards: Path, monkeypatch: pytest.MonkeyPatch) -> EchoModel:
    echo = EchoModel([{"after_layer": 1, "length": 32, "ratio": None}, {"after_layer": 2, "length": 8, "ratio": None}])
    stub = ModuleType("transpooler.trainer.weights.models")
    stub.load_model = lambda folder, keep: (echo, load_tokenizer(shards / "tokenizer"))  # type: ignore[attr-defined]
    stub.build_model = lambda config, tokenizer: echo  # type: ignore[attr-defined]
    stub.default_device = lambda: "cpu"  # type: ignore[attr-defined]
    stub.keep_tokens = lambda model, keep: None  # type: ignore[attr-defined]
    stub.prepare_model = lambda model, precision: model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transpooler.trainer.weights.models", stub)
    return echo


def test_evaluation_writes_texts_numbers_and_highlights(
    config: Config, model: EchoModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(config, model_folder=tmp_path, output=tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "generated.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"d{number}" for number in range(NUM_DOCUMENTS)]
    assert rows[3]["reference"] == "word3 number 3."
    assert TEXT.startswith(rows[3]["generated"][:8])
    assert rows[3]["lead"] == "the naïve café"  # the references have 3 words
    assert results["lead_words"] == 3
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == results
    assert results["rouge"]["rouge1"]["mean"] == pytest.approx(sum(row["rouge"]["rouge1"] for row in rows) / len(rows))
    marks = json.loads((tmp_path / "out" / "highlights.json").read_text())
    assert len(marks) == 3
    assert "".join(marks[0]["pieces"]).startswith(TEXT[:30])
    assert len(marks[0]["stages"]) == len(marks[0]["stage_names"]) == 2
    assert model.batch_sizes == [4, 4, 3]
    print_evaluations(results)
    assert "lead-3" in capsys.readouterr().out


def test_a_dialect_of_rouge_is_noted_wherever_its_numbers_stand(
    config: Config, model: EchoModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(config, evaluation=replace(config.evaluation, rouge="rouge-1.5.5"))
    found = {each.evaluation.rouge: evaluate(each, model_folder=None, output=tmp_path) for each in (config, other)}
    print_evaluations(found["rouge-score"])
    assert "ROUGE F1 in % (95 % interval), rouge-score" in capsys.readouterr().out
    print_evaluations(found["rouge-1.5.5"])
    assert "ROUGE F1 in % (95 % interval), rouge-1.5.5" in capsys.readouterr().out
    assert read_json(tmp_path / "metrics.json")["rouge_dialect"] == "rouge-1.5.5"
    row = json.loads((tmp_path / "generated.jsonl").read_text().splitlines()[0])
    assert row["rouge"] == rouge(row["reference"], row["generated"], "rouge-1.5.5")
    assert row["lead_rouge"] == rouge(row["reference"], row["lead"], "rouge-1.5.5")


METRICS = """
seen = []
def words(document, reference, summary):
    seen.append((document, reference, summary))
    return len(summary.split())
def late(document, reference, summary):
    assert "word7" not in document, "too hard"
    return 1
"""


def test_own_metrics_have_intervals_and_stand_in_files_and_tables(
    config: Config, model: EchoModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "counting_metrics.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    asked = replace(config, evaluation=replace(config.evaluation, metrics=("counting_metrics:words",)))
    results = evaluate(asked, model_folder=None, output=tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "generated.jsonl").read_text().splitlines()]
    counts = [row["metrics"]["counting_metrics:words"] for row in rows]
    assert counts == [len(row["generated"].split()) for row in rows]
    found = read_json(tmp_path / "out" / "metrics.json")
    interval = found["metrics"]["counting_metrics:words"]
    assert interval["mean"] == pytest.approx(sum(counts) / len(counts))
    assert interval["low"] <= interval["mean"] <= interval["high"]
    assert found["lead_metrics"]["counting_metrics:words"] == {"mean": 3.0, "low": 3.0, "high": 3.0}
    print_evaluations(results)
    printed = capsys.readouterr().out
    assert "counting_metrics:words" in printed
    assert "3 (3 to 3)" in printed
    seen = sys.modules["counting_metrics"].seen
    assert seen[0][1] == seen[0][2] == "word0 number 0."  # the trial, before anything is generated
    assert seen[1][0].startswith(TEXT)
    assert seen[1][0].rstrip().endswith("word0 word0")  # the whole document, of which the model reads 60 tokens
    assert len(seen) == 1 + 2 * NUM_DOCUMENTS


def test_a_metric_that_fails_ends_the_evaluation_with_the_document(
    config: Config, model: EchoModel, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "failing_metrics.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    asked = replace(config, evaluation=replace(config.evaluation, metrics=("failing_metrics:late",)))
    with pytest.raises(UserError, match="failing_metrics:late failed on document d7: AssertionError: too hard"):
        evaluate(asked, model_folder=None, output=tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_wrong_summaries_cost_more(config: Config, model: EchoModel, tmp_path: Path) -> None:
    results = evaluate(config, model_folder=None, output=tmp_path)
    assert (results["trained"], results["model"]) == (False, "untrained")
    assert results["shuffled_loss"] > results["loss"]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_derangement_leaves_nothing_in_its_place(count: int) -> None:
    for seed in range(20):
        partners = derangement(count, seed)
        assert sorted(partners) == list(range(count))
        assert all(partner != number for number, partner in enumerate(partners))
    assert derangement(count, 1) == derangement(count, 1)
    assert derangement(1, 0) == [0]


def test_a_foreign_tokenizer_is_refused(config: Config, model: EchoModel, shards: Path, tmp_path: Path) -> None:
    foreign = load_tokenizer(shards / "tokenizer")
    foreign.add_tokens(["foreign"])
    models: Any = sys.modules["transpooler.trainer.weights.models"]
    models.load_model = lambda folder, keep: (model, foreign)
    with pytest.raises(UserError, match="its tokenizer is not the one of"):
        evaluate(config, model_folder=tmp_path, output=tmp_path)
    assert list(tmp_path.glob("*.json*")) == []


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_of_another_tokenizer_is_refused(
    config: Config, model: EchoModel, shards: Path, tmp_path: Path, split: str
) -> None:
    """Also where it gives lengths of references alone."""
    shutil.copytree(shards, tmp_path / "mixed")
    edited = (tmp_path / "mixed" / split / "index.json").read_text().replace('fingerprint": "', 'fingerprint": "0')
    (tmp_path / "mixed" / split / "index.json").write_text(edited)
    mixed = replace(config, data=replace(config.data, shards=str(tmp_path / "mixed")))
    with pytest.raises(UserError, match=f"its tokenizer is not the tokenizer of the shards in .*mixed/{split}"):
        evaluate(mixed, model_folder=tmp_path, output=tmp_path / "out")


def test_a_split_that_was_not_prepared(config: Config, model: EchoModel, shards: Path, tmp_path: Path) -> None:
    absent = config_from_dict({"data": {"shards": str(shards)}, "evaluation": {"split": "pretrain"}})
    with pytest.raises(UserError, match="pretrain"):
        evaluate(absent, model_folder=tmp_path, output=tmp_path)


def test_pieces_are_whole_characters_and_make_the_text(shards: Path) -> None:
    tokenizer = load_tokenizer(shards / "tokenizer")
    text = f"{TEXT} 漢字 \u200b</s> <b>"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    pieces = text_pieces(tokenizer, ids)
    assert "".join(piece for piece, _ in pieces) == text
    starts = [start for _, start in pieces]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert len(pieces) < len(ids)  # characters of several tokens are one piece
    assert text_pieces(tokenizer, []) == []


def test_a_piece_has_the_largest_weight_of_its_tokens(shards: Path, model: Any) -> None:
    tokenizer = load_tokenizer(shards / "tokenizer")
    ids = [*tokenizer("a 漢 b", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    found = highlight(model, tokenizer, ids, 1000)
    starts = [start for _, start in text_pieces(tokenizer, ids[:-1])]
    ends = [*starts[1:], len(ids) - 1]
    assert found["stages"][1] == [round((end - 1) / (len(ids) - 1), 3) for end in ends]
    assert (found["num_tokens"], found["num_read_tokens"]) == (1000, len(ids) - 1)


def test_stage_names_count_tokens() -> None:
    stages = [PoolingStage(after_layer=1, ratio=0.25), PoolingStage(after_layer=3, length=100)]
    assert stage_names(stages, 2048) == ["after layer 1: 512 of 2,048 tokens", "after layer 3: 100 of 2,048 tokens"]
    assert stage_names(stages[1:], 60) == ["after layer 3: 60 of 60 tokens"]


def test_a_ratio_is_that_of_what_the_stage_before_kept() -> None:
    stages = [PoolingStage(after_layer=1, ratio=0.5), PoolingStage(after_layer=2, ratio=0.25)]
    assert stage_names(stages, 40) == ["after layer 1: 20 of 40 tokens", "after layer 2: 5 of 40 tokens"]


def test_summaries_come_in_order_and_say_what_was_read(shards: Path, model: Any) -> None:
    tokenizer = load_tokenizer(shards / "tokenizer")
    texts = [f"text {number} </s> ends" for number in range(5)]
    settings = GenerationConfig(batch_size=2, max_new_tokens=6)
    found = Summarizer(model, tokenizer, settings, max_source_tokens=8).summarize(texts, sources=False, progress=False)
    assert [summary.text[:6] for summary in found] == [text[:6] for text in texts]
    assert all((len(summary.read_ids), summary.num_source_tokens) == (8, None) for summary in found)
    summarizer = Summarizer(model, tokenizer, GenerationConfig(), max_source_tokens=100)
    (whole,) = summarizer.summarize(texts[0], sources=False, progress=False)
    assert whole.num_source_tokens == len(whole.read_ids) - 1 > 8
    assert set(found[0].as_dict()) == {"summary", "num_source_tokens", "num_read_tokens"}
    assert model.batch_sizes == [2, 2, 1, 1]


def test_a_document_cannot_write_special_tokens(shards: Path, model: Any) -> None:
    tokenizer = load_tokenizer(shards / "tokenizer")
    tokenizer.split_special_tokens = False  # as a tokenizer that was not made here
    Summarizer(model, tokenizer, GenerationConfig()).summarize("a </s> b <mask> c", sources=False, progress=False)
    assert model.last_input_ids[0, -1] == tokenizer.eos_token_id
    assert not set(model.last_input_ids[0, :-1].tolist()) & set(tokenizer.all_special_ids)


def test_batches_are_lazy() -> None:
    assert next(batches(iter(int, 1), 3)) == [0, 0, 0]
    assert list(batches("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]


def test_the_length_penalty_is_for_beams(shards: Path, model: Any) -> None:
    tokenizer = load_tokenizer(shards / "tokenizer")
    for num_beams, expected in ((1, 1.0), (2, 0.5)):  # generate warns of a penalty that it does not use
        settings = GenerationConfig(num_beams=num_beams, length_penalty=0.5)
        Summarizer(model, tokenizer, settings).summarize("a", sources=False, progress=False)
        assert model.last_settings["length_penalty"] == expected

"""Sources name the place of a planted fact: a model is trained on documents with known places, and asked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest

from tests.paths import ROOT
from transpooler.benchmarks.quality.needles import make_vocabulary, write_needles
from transpooler.benchmarks.quality.source_recall import measure, score
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.trainer.config import load_config
from transpooler.trainer.evaluation.summarizer import load
from transpooler.trainer.run_folder import RunFolder

STEPS, NUM_DOCUMENTS, CHOICES = 240, 60, 3
"""Each word of a fact is one of three, not of eleven as in the study: that is learned in a third of the steps."""


@pytest.mark.slow  # half a minute
def test_the_fact_is_among_the_first_two_sources_of_its_sentence(tmp_path: Path) -> None:
    words = make_vocabulary()
    few = replace(words, facts=[[choices[:CHOICES] for choices in places] for places in words.facts])
    documents = {"train": 16 * STEPS, "validation": 4, "test": NUM_DOCUMENTS}
    paths = write_needles(tmp_path, documents, sentences=True, words=few)
    settings = [
        f"prepare.output={tmp_path / 'shards'}",
        f"prepare.sources={json.dumps({split: [str(path)] for split, path in paths.items()})}",
        f"data.shards={tmp_path / 'shards'}",
        *("data.max_source_tokens=144", "data.max_target_tokens=26", "generation.max_new_tokens=26"),
        "model.pooling=[{after_layer: 2, length: 32}]",
        *("optimizer.learning_rate=0.002", "optimizer.schedule=constant", "engine.zero_stage=0"),
        *(f"train.steps={STEPS}", "train.evaluate_every_steps=0", f"run={tmp_path / 'run'}"),
    ]
    preset = str(ROOT / "configs" / "studies" / "shared" / "needles.yaml")
    prepare(load_config([preset], settings).prepare)
    job = forked.train(1, [preset, *settings], tmp_path / "log.txt")
    assert job.codes() == [0], job.output()[-3000:]
    model = RunFolder(tmp_path / "run").export
    rows = [json.loads(line) for line in paths["test"].open()]
    ours, random = measure(model, rows), _measure_at_random(model, rows)
    print(f"as trained {ours}, what is kept at random {random}")
    assert ours["sentences"] >= 0.95 * 4 * NUM_DOCUMENTS
    assert ours["first two"] >= 0.95
    assert random["first two"] <= ours["first two"] - 0.2
    assert ours["by chance"] <= 0.12


def _measure_at_random(model: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    """The same model, keeping tokens drawn at random: where the fact's are not kept, no source can name them."""
    summarizer = load(model)
    poolers: Any = summarizer.model.get_encoder().poolers
    poolers._stages = tuple(replace(stage, operator="random") for stage in poolers._stages)
    return score(summarizer.summarize([row["article"] for row in rows]), rows)

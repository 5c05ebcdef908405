"""Pretrained weights through two ranks and back: what `transformers` gave is what it gets, under every ZeRO stage."""

from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from tests.stock_models import stock
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.run_folder import RunFolder


@pytest.mark.parametrize(("stage", "name"), [(0, "bart"), (1, "umt5"), (2, "marian"), (3, "flan_t5"), (3, "bart")])
def test_a_step_of_no_length_exports_what_it_started_from(stage, name, shards, tmp_path):
    """Tied heads, untied ones (flan_t5), biases of logits (marian): texts of the export are the stock model's."""
    theirs = stock(name, load_tokenizer(shards / "tokenizer"), tmp_path / name)
    run = tmp_path / "run"
    settings = [
        *(f"run={run}", f"train.init_from={tmp_path / name}", f"engine.zero_stage={stage}", "train.steps=1"),
        f"data={{shards: {shards}, max_source_tokens: 60, max_target_tokens: 24, batch_size: 4}}",
        *("model={block_size: null, pooling: []}", "optimizer={learning_rate: 1.0e-12, warmup_steps: 0}"),
        *("train.tensorboard=false", "data.validation_split=null", "generation={num_beams: 2, max_new_tokens: 12}"),
    ]
    job = forked.train(2, settings, tmp_path / "log.txt")
    assert job.codes() == [0, 0], job.output()
    assert "start from random weights" not in job.output()
    exported: Any = AutoModelForSeq2SeqLM.from_pretrained(RunFolder(run).export, trust_remote_code=True).eval()
    ids = torch.randint(6, 290, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(40) < torch.tensor([[40], [25], [7]])).long()
    with torch.no_grad():
        given = {"input_ids": ids, "attention_mask": mask}
        ours, stocks = (model(**given, decoder_input_ids=ids[:, :9]).logits for model in (exported, theirs))
        torch.testing.assert_close(ours, stocks, atol=1e-5, rtol=1e-5)
        texts = [model.generate(**given, num_beams=2, max_new_tokens=12) for model in (exported, theirs)]
    assert torch.equal(*texts)
    assert Path(RunFolder(run).export / "README.md").read_text().count(f"`{name}`") == 1

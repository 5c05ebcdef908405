"""A causal language model becomes a compressor by its folder alone: it trains, resumes, is exported and read again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_llama
from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import load_config, save_config
from transpooler.trainer.config.load import load_saved_config
from transpooler.trainer.estimate.memory import estimate_run
from transpooler.trainer.evaluation.generate import generate
from transpooler.trainer.evaluation.highlights import highlight
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.generation import stored_generation
from transpooler.trainer.weights.models import build_model, load_model
from transpooler.trainer.weights.warm_start import start_from


@pytest.fixture
def llama(shards, tmp_path) -> Path:
    """A small random Llama with the corpus's tokenizer, saved as `transformers` saves it."""
    return write_llama(shards, tmp_path / "llama")


@pytest.fixture
def settings(shards, llama) -> list[str]:
    pooling = "[{after_layer: 1, ratio: 0.5}, {after_layer: 2, ratio: 0.25}]"
    return [
        f"data={{shards: {shards}, max_source_tokens: 96, max_target_tokens: 24, batch_size: 5}}",
        f"model={{kind: compressor, encoder_layers: 2, block_size: 32, pooling: {pooling}}}",
        "model.prompt='Read: {document} Say:'",
        "train={steps: 4, checkpoint_every_steps: 2, evaluate_every_steps: 0, log_every_steps: 1, tensorboard: false}",
        "engine={precision: fp32, micro_batch_size: 2, zero_stage: 0}",
        "optimizer={warmup_steps: 1, learning_rate: 0.003}",
        f"train.init_from={llama}",
    ]


def test_the_folder_says_what_the_models_are(settings, llama):
    config = load_config([], settings)
    model: Any = config.model
    assert (model.num_layers, model.encoder["num_hidden_layers"], model.reader["hidden_size"]) == (2, 3, 32)
    with pytest.raises(UserError, match=r"model.d_model: unknown key"):
        load_config([], [*settings, "model.d_model=64"])
    with pytest.raises(UserError, match=r"model.pooling\[1\].after_layer is 3; must lie in 0..2"):
        load_config([], [*settings, "model.pooling=[{after_layer: 1, ratio: 0.5}, {after_layer: 3, ratio: 0.25}]"])
    with pytest.raises(UserError, match="no model there"):
        load_config([], [*settings, "train.init_from=/absent"])
    with pytest.raises(UserError, match=r"model\.encoder is not known"):
        load_config([], [*settings, "train.init_from=null"])
    (llama / "config.json").write_text(json.dumps({"model_type": "bart"}))
    with pytest.raises(UserError, match="'bart' model, which is no causal language model"):
        load_config([], settings)


def test_a_run_that_has_begun_needs_the_weights_no_more(settings, llama, tmp_path):
    config = load_config([], [*settings, f"run={tmp_path / 'run'}"])
    save_config(config, tmp_path / "run" / "config.yaml")
    assert load_saved_config(tmp_path / "run" / "config.yaml")[0] == config
    llama.rename(tmp_path / "moved")
    assert load_config([], [*settings, f"run={tmp_path / 'run'}"]).model == config.model


def test_weights_find_their_places_and_what_is_missing_is_named(settings, llama, shards, capsys):
    from safetensors.torch import load_file, save_file

    config, tokenizer = load_config([], settings), load_tokenizer(shards / "tokenizer")
    model: Any = build_model(config, tokenizer)
    start_from(model, llama, config, tokenizer)
    stored = load_file(llama / "model.safetensors")
    state = model.state_dict()
    for name, tensor in stored.items():
        assert torch.equal(state[f"reader.{name}"], tensor)
        if not name.startswith(("model.layers.2", "lm_head")):
            assert torch.equal(state[f"encoder.stock.{name.removeprefix('model.')}"], tensor)
    assert "2 encoder layers is there" in capsys.readouterr().err
    assert model.config.prefix_ids == tokenizer("Read: ", add_special_tokens=False).input_ids
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of the reader: reader.model.layers.1.mlp.up_proj.weight"):
        start_from(model, llama, config, tokenizer)


def test_an_export_is_a_stock_reader_and_an_encoder(settings, shards, tmp_path):
    from transformers import AutoModelForCausalLM

    config = load_config([], [*settings, "generation.max_new_tokens=8"])
    tokenizer = load_tokenizer(shards / "tokenizer")
    model: Any = build_model(config, tokenizer).eval()
    export_model(model, tokenizer, tmp_path / "export", config, step=3)
    loaded: Any
    loaded, its_tokenizer = load_model(tmp_path / "export")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    sources = [list(range(6, 60)), list(range(9, 30))]
    summaries = generate(loaded, its_tokenizer, sources, config.generation)
    assert summaries == generate(model, tokenizer, sources, config.generation)
    reader: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "export" / "reader")
    embeddings, mask = loaded.prompt_embeddings(torch.tensor([sources[0]]))
    written = reader.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=5, num_beams=1)
    assert torch.equal(written, model.generate(torch.tensor([sources[0]]), max_new_tokens=5, num_beams=1))
    marks = highlight(loaded, its_tokenizer, sources[0], 54)
    assert marks["stage_names"] == ["after layer 1: 27 of 54 tokens", "after layer 2: 7 of 54 tokens"]


def test_an_export_is_generated_from_as_its_run_said(settings, shards, tmp_path):
    beams = {"num_beams": 3, "max_new_tokens": 9, "min_new_tokens": 2, "length_penalty": 1.5, "no_repeat_ngram_size": 2}
    config = load_config([], [*settings, *(f"generation.{name}={value}" for name, value in beams.items())])
    tokenizer = load_tokenizer(shards / "tokenizer")
    export_model(build_model(config, tokenizer), tokenizer, tmp_path / "export", config, step=3)
    assert stored_generation(tmp_path / "export") == beams


def test_the_plan_counts_what_the_model_holds(settings, shards):
    config, tokenizer = load_config([], settings), load_tokenizer(shards / "tokenizer")
    parameters = sum(parameter.numel() for parameter in build_model(config, tokenizer).parameters())
    estimate = estimate_run(config, 1)
    assert estimate.parameters == parameters
    assert estimate.tflop_per_step > 0

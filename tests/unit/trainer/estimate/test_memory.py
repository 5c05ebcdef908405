"""`train --dry-run`: what it says against a model that is really built and really run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT
from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import load_config
from transpooler.trainer.engine.engine import estimate_states
from transpooler.trainer.estimate.activations import activation_bytes
from transpooler.trainer.estimate.memory import describe, estimate_run, model_states
from transpooler.trainer.weights.models import build_model

SIZES = {
    "pyramid": ["model.pooling=[{after_layer: 1, length: 256}, {after_layer: 2, length: 64}]"],
    "blockwise": ["model.pooling=[]"],
    "gated": ["model.pooling=[{after_layer: 2, length: 64}]", "model.activation=swiglu", "model.norm=pre"],
    "dropout": ["model.pooling=[{after_layer: 2, length: 64}]", "model.dropout=0.1"],
    "checkpointed": ["model.pooling=[]", "engine.activation_checkpointing=torch"],
}
MODEL = "model={d_model: 64, num_heads: 4, ffn_dim: 256, block_size: 128, encoder_layers: 4, decoder_layers: 2}"


@pytest.mark.parametrize("kind", SIZES)
def test_activations_are_about_what_a_forward_pass_keeps(kind, tiny_settings):
    config = load_config([], [*tiny_settings, MODEL, "model.dropout=0", *SIZES[kind], "engine.micro_batch_size=1"])
    model = build_model(config, load_tokenizer(Path(config.data.shards) / "tokenizer"))
    if kind == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(6, 250, (1, 1024))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :96]}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch).loss
    assert loss.requires_grad
    estimate = activation_bytes(config.model, len(model.lm_head.weight), config.engine, 1024, 96)
    if kind == "checkpointed":  # the layer that is computed again comes on top, in the backward pass
        estimate -= max_layer(config)
    assert estimate == pytest.approx(sum(kept.values()), rel=0.25)


def max_layer(config) -> int:
    plain = replace(config.engine, activation_checkpointing="none")
    one, none = (
        activation_bytes(replace(config.model, encoder_layers=layers), 1, plain, 1024, 96)
        for layers in (config.model.encoder_layers, config.model.encoder_layers - 1)
    )
    return one - none


def test_the_estimate_counts_what_is_there(tiny_settings):
    config = load_config([], [*tiny_settings, "engine.zero_stage=2", "engine.precision=bf16"])
    estimate = estimate_run(config, 2)
    model = build_model(config, load_tokenizer(Path(config.data.shards) / "tokenizer"))
    assert estimate.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (estimate.num_documents, estimate.steps_per_epoch, estimate.micro_batches) == (24, 5, 2)
    assert 5 * 30 < estimate.source_tokens_per_step < 5 * 96
    assert estimate.states[2][0] == estimate_states(estimate.parameters, estimate.largest_layer, 2, 2, False, False)[0]
    assert estimate.states[0][0] == 18 * estimate.parameters
    assert estimate.states[1][0] > estimate.states[2][0] > estimate.states[3][0]
    fp32 = load_config([], [*tiny_settings, "engine.offload_optimizer=cpu"]).engine
    assert model_states(1000, 10, 1, fp32, 4) == (8000, 8000)
    assert model_states(1000, 10, 3, fp32, 4) == (4000 + 40, 0)
    assert not [line for line in describe(estimate, config, 2).splitlines() if line.startswith("WARNING")]
    small = replace(estimate, memory=estimate.states[2][0])
    (warning,) = [line for line in describe(small, config, 2).splitlines() if line.startswith("WARNING")]
    assert "engine.activation_checkpointing=torch" in warning


def test_what_is_frozen_has_neither_gradients_nor_states(tiny_settings):
    stages = "train.stages=[{steps: 10, freeze: ['*encoder*', '*shared*']}, {steps: 30}]"
    config = load_config([], [*tiny_settings, stages, "engine.precision=bf16", "engine.zero_stage=1"])
    whole, staged = estimate_run(load_config([], tiny_settings), 2), estimate_run(config, 2)
    assert staged.trained[1] == staged.parameters == whole.parameters
    assert 0 < staged.trained[0] < whole.parameters
    lines = describe(staged, config, 2).splitlines()
    assert f"trained             {staged.trained[0]:,}, " in lines[1]
    assert lines[1].endswith("(steps 1 to 10)")
    frozen = load_config([], [*tiny_settings, "train.freeze=['*encoder*', '*shared*']"])
    estimate = estimate_run(frozen, 2)
    assert estimate.trained == staged.trained[:1]
    assert estimate.activations < 0.7 * whole.activations
    assert estimate.checkpoint == 12 * estimate.trained[0] + 4 * (estimate.parameters - estimate.trained[0])
    assert estimate.tflop_per_step < 0.6 * whole.tflop_per_step
    assert "trained" not in describe(whole, config, 2)
    fp32, bf16 = frozen.engine, config.engine
    assert model_states(1000, 10, 0, fp32, 4, 100) == (4000 + 12 * 100, 0)
    assert model_states(1000, 10, 3, fp32, 4, 100) == (1000 + 300 + 40, 0)
    assert model_states(1000, 10, 2, bf16, 4, 100)[0] == estimate_states(100, 10, 2, 4, False, False)[0] + 1800
    assert model_states(1000, 10, 3, bf16, 4, 100)[0] == estimate_states(100, 10, 3, 4, False, False)[0] + 450
    with pytest.raises(UserError, match=r"train.freeze: no parameter's name matches 'encoder\.\*'.*model\.encoder\.\*"):
        estimate_run(load_config([], [*tiny_settings, "train.freeze=['encoder.*']"]), 2)


def test_a_dry_run_of_a_model_beyond_this_machine_allocates_nothing(tiny_settings, tmp_path):
    huge = "model={d_model: 16384, num_heads: 128, ffn_dim: 65536, encoder_layers: 48, decoder_layers: 48}"
    settings = [*tiny_settings, huge, "model.pooling=[]", "model.block_size=512", f"run={tmp_path / 'run'}"]
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30)); "
    limited += "runpy.run_module('transpooler', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", limited, "train", *settings, "--processes", "64", "--dry-run"],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING: this run needs about" in done.stdout
    assert "does not fit  <- engine.zero_stage" in done.stdout
    assert not (tmp_path / "run").exists()

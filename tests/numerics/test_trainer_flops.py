"""Our count of operations against the one that torch makes while the model runs."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.model.compressor.config import CompressorConfig
from transpooler.model.compressor.modeling import CompressorForConditionalGeneration
from transpooler.model.ops.operators import OPERATORS
from transpooler.model.ops.schedule import PoolingStage
from transpooler.trainer.config.optimizer import OptimizerConfig
from transpooler.trainer.config.stages import LoraConfig, Stage
from transpooler.trainer.engine.parameters import freeze
from transpooler.trainer.estimate.flops import batch_flops, document_work
from transpooler.trainer.estimate.products import trained_of
from transpooler.trainer.weights.lora import add_lora

SIZES: dict[str, Any] = {
    "d_model": 32,
    "num_heads": 2,
    "ffn_dim": 48,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "vocab_size": 70,
}
KINDS: dict[str, dict[str, Any]] = {
    "vanilla": {"block_size": None},
    "blockwise": {"block_size": 16},
    "pyramid": {"block_size": 16, "pooling": [{"after_layer": 1, "length": 32}, {"after_layer": 3, "length": 16}]},
    "ratio": {"block_size": 16, "pooling": [{"after_layer": 2, "ratio": 0.25}], "norm": "pre", "positions": "rotary"},
    "options": {
        "num_heads": 4,
        "kv_heads": 2,
        "head_dim": 6,
        "positions": "relative",
        "activation": "geglu",
        "block_size": 16,
        "pooling": [{"after_layer": 2, "ratio": 0.25}],
        "attention_bias": False,
    },
    "gated": {
        "activation": "swiglu",
        "block_size": 16,
        "pooling": [{"after_layer": 3, "length": 16, "operator": "random"}],
    },
    **{
        operator: {"block_size": 16, "pooling": [{"after_layer": 2, "length": 32, "operator": operator}]}
        for operator in OPERATORS
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_are_what_torch_counts(kind):
    torch.manual_seed(0)
    config = TranspoolerConfig(**SIZES | KINDS[kind])
    model = TranspoolerForConditionalGeneration(config)
    ids = torch.randint(6, 70, (2, 64))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :24]}
    # The counter knows the plain attention alone, not the CPU's fused one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = model(**batch).loss
    counted_forward = counter.get_total_flops()
    ours = document_work(config.architecture, 70, 64, 24)
    assert 2 * ours.forward == pytest.approx(counted_forward, rel=2e-3)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == pytest.approx(2 * counted_forward, rel=2e-3)
    assert batch_flops(config.architecture, 70, [(64, 24)] * 2) == 2 * ours.total == 3 * 2 * ours.forward


FROZEN = {
    "encoder": ["*encoder*"],
    "decoder": ["*decoder*", "*lm_head*"],
    "all but the scorers": ["*layers*", "*shared*", "*norm*"],
    "all but the last network": [
        "*encoder*",
        "*shared*",
        "*lm_head*",
        "*layers.0*",
        "*attention*",
        "*norm*",
        "*embed*",
    ],
    "all but the last layer's norm": [
        "*shared*",
        "*embedder*",
        "*poolers*",
        "*encoder*",
        "*layers.0*",
        "*proj*",
        "*fc*",
    ],
    "queries alone": ["*k_proj*", "*v_proj*", "*out_proj*", "*fc*", "*gate*", "*shared*", "*norm*", "*embed*"],
    "weights, not biases": ["*weight"],
    "lowest layers": ["*shared*", "*embed*", "*encoder.layers.0*", "*encoder.layers.1*"],
}


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_frozen_costs_no_gradients(frozen, pre):
    torch.manual_seed(0)
    kind = {**KINDS["pyramid"], **({"norm": "pre", "tie_word_embeddings": False} if pre else {})}
    model = TranspoolerForConditionalGeneration(TranspoolerConfig(**SIZES, **kind))
    model.tie_weights()
    ids = torch.randint(6, 70, (2, 64))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :24]}
    _assert_backward(model, batch, FROZEN[frozen], model.config.architecture, 70)


@pytest.mark.parametrize("frozen", [["*"], ["*", "*lora_A*"], ["*lora_*"]])
def test_factors_of_low_rank_are_counted(frozen):
    torch.manual_seed(0)
    model = TranspoolerForConditionalGeneration(TranspoolerConfig(**SIZES, **KINDS["pyramid"]))
    add_lora(model, LoraConfig(rank=8, targets=("*.q_proj", "*.layers.1.*.fc_out", "*.2.attention.v_proj")), seed=0)
    ids = torch.randint(6, 70, (2, 64))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :24]}
    _assert_backward(model, batch, frozen, model.config.architecture, 70)


COMPRESSOR_FROZEN = {
    "nothing": ["no such name"],
    "all but the adapter": ["reader*", "*stock*", "*poolers*"],
    "reader": ["reader*"],
    "encoder": ["encoder*"],
    "all but one projection": ["encoder*", "*embed*", "*norm*", "*lm_head*", "*layers.0*", "*mlp*", "*[kvo]_proj*"],
}


@pytest.mark.parametrize("frozen", COMPRESSOR_FROZEN)
def test_a_compressor_is_counted_like_torch_counts_it(frozen):
    torch.manual_seed(0)
    stock: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 70}
    reader = LlamaConfig(**stock, num_attention_heads=4, num_key_value_heads=2).to_dict()
    pooling = [PoolingStage(after_layer=2, ratio=0.25)]
    chosen: dict[str, Any] = {"encoder": reader, "reader": reader, "block_size": 16}
    config = CompressorConfig(**chosen, pooling=[asdict(stage) for stage in pooling])
    model = CompressorForConditionalGeneration(config)
    ids = torch.randint(6, 70, (2, 64))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :24]}
    architecture = CompressorArchitecture(**chosen, pooling=tuple(pooling))
    _assert_backward(model, batch, COMPRESSOR_FROZEN[frozen], architecture, 70, rel=5e-3)


def _assert_backward(
    model: Any, batch: dict[str, torch.Tensor], frozen: list[str], architecture: Any, vocab_size: int, rel: float = 2e-3
) -> None:
    config = OptimizerConfig()
    freeze(model, Stage(number=0, first=0, last=1, freeze=tuple(frozen), optimizer=config, key="train"))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = model(**batch).loss
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    ours = document_work(architecture, vocab_size, 64, 24, trained_of(model))
    assert 2 * ours.forward == pytest.approx(forward, rel=rel)
    assert 2 * ours.backward == pytest.approx(counter.get_total_flops(), rel=rel)


def test_padding_is_no_work_and_pooling_saves_it():
    whole, pooled = (TranspoolerConfig(**SIZES | KINDS[kind]).architecture for kind in ("blockwise", "pyramid"))
    separate = sum(document_work(pooled, 70, *lengths).total for lengths in ((64, 24), (20, 7)))
    assert batch_flops(pooled, 70, [(64, 24), (20, 7)]) == separate
    assert document_work(pooled, 70, 4096, 24).total < 0.6 * document_work(whole, 70, 4096, 24).total

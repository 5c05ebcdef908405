"""Our count of operations against the one that torch makes while the model runs."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.model.ops.operators import OPERATORS
from transpooler.trainer.estimate.flops import batch_flops, forward_flops

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
    ours = forward_flops(config.architecture, 70, 64, 24)
    assert 2 * ours.total == pytest.approx(counted_forward, rel=2e-3)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == pytest.approx(2 * counted_forward, rel=2e-3)
    assert batch_flops(config.architecture, 70, batch) == 3 * 2 * ours.total


def test_padding_is_no_work_and_pooling_saves_it():
    whole, pooled = (TranspoolerConfig(**SIZES | KINDS[kind]).architecture for kind in ("blockwise", "pyramid"))
    batch = {
        "attention_mask": (torch.arange(64) < torch.tensor([[64], [20]])).long(),
        "labels": torch.where(torch.arange(24) < torch.tensor([[24], [7]]), 9, -100),
    }
    separate = sum(3 * forward_flops(pooled, 70, *lengths).total for lengths in ((64, 24), (20, 7)))
    assert batch_flops(pooled, 70, batch) == separate
    assert forward_flops(pooled, 70, 4096, 24).total < 0.6 * forward_flops(whole, 70, 4096, 24).total

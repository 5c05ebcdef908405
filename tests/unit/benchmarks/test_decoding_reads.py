"""The benchmark of decoding: what it counts as read, and that it measures tokens without an encoder."""

from typing import Any

import pytest
import torch

from transpooler.benchmarks.speed.decoding import measure
from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.model.ops.decoding.prepare import prepare_for_inference

WIDTH, FFN, VOCABULARY, SLOTS, BATCH, BEAMS, TOKENS = 32, 64, 50, 24, 2, 3, 5
SQUARE = WIDTH * WIDTH
MAPS = 6 * SQUARE + 2 * WIDTH * FFN + VOCABULARY * WIDTH
"""Weights of one layer's maps and of the head; cross-attention's keys and values are made once a document."""
BIASES = 6 * WIDTH + FFN + WIDTH
NORMS = 3 * 2 * WIDTH
CACHES = 2 * WIDTH * (BATCH * SLOTS + BATCH * BEAMS * TOKENS)


@pytest.mark.parametrize("precision", [None, "fp32", "int8"])
def test_a_token_reads_weights_and_caches(precision):
    sizes: dict[str, Any] = {"d_model": WIDTH, "num_heads": 2, "ffn_dim": FFN, "vocab_size": VOCABULARY}
    model = TranspoolerForConditionalGeneration(TranspoolerConfig(**sizes, encoder_layers=1, decoder_layers=1)).eval()
    if precision is not None:
        prepare_for_inference(model, precision)
    cross = [(torch.rand(BATCH, 2, SLOTS, WIDTH // 2), torch.rand(BATCH, 2, SLOTS, WIDTH // 2))]
    with torch.inference_mode():
        seconds, mib = measure(model, cross, BEAMS, TOKENS)
    assert seconds > 0
    head_bias = VOCABULARY if model.lm_head.bias is not None else 0
    smallest = MAPS * (1 if precision == "int8" else 4) + 4 * (BIASES + NORMS + head_bias + CACHES)
    # Panels are filled up to whole ones, and int8 has a scale for each output.
    assert smallest <= mib * 2**20 <= smallest + (4 * 2000 if precision else 0)

"""The model's own count of its work: floating-point operations of the matrix products, from the lengths alone.

Counted as `torch.utils.flop_counter` counts, two per multiply-add; norms, softmax, embeddings and the sums of the
poolers that are linear in n·d (less than a thousandth) are left out, as there. Real tokens count, padding does not:
what is computed on padding is not useful work. The backward pass costs twice the forward pass; what activation
checkpointing computes again is not counted (Chowdhery et al. 2022, PaLM, appendix B).
"""

from dataclasses import dataclass
from typing import Any

import torch

from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.model.ops.operators import OPERATORS

PEAK_TFLOPS = {
    "V100": {"fp16": 125},
    "A100": {"bf16": 312, "fp16": 312, "fp32": 156},
    "A10G": {"bf16": 70, "fp16": 70},
    "L4": {"bf16": 121, "fp16": 121, "fp32": 60},
    "H100": {"bf16": 989, "fp16": 989, "fp32": 495},
    "H200": {"bf16": 989, "fp16": 989, "fp32": 495},
    "B200": {"bf16": 2250, "fp16": 2250, "fp32": 1100},
}
"""Dense matrix products, 10^12 operations a second, by part of the device's name (data sheets; fp32 as TF32)."""


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one document's forward pass."""

    encoder: float
    decoder: float
    """With the language-model head."""

    @property
    def total(self) -> float:
        return self.encoder + self.decoder


def forward_flops(
    model: Architecture | CompressorArchitecture, vocab_size: int, source_tokens: int, target_tokens: int
) -> ForwardFlops:
    """Count one document of `source_tokens` and its summary of `target_tokens`, </s> included in both."""
    if isinstance(model, CompressorArchitecture):
        return _compressor_flops(model, vocab_size, source_tokens, target_tokens)
    width, ffn = model.d_model, feed_forward_weights(model)
    heads, projections = model.num_heads * model.head_width, attention_weights(model)
    stages = {stage.after_layer: stage for stage in model.pooling}
    length, encoder = source_tokens, 0.0
    for layer in range(1, model.encoder_layers + 1):
        encoder += 2 * length * (projections + ffn) + 4 * heads * _count_pairs(length, model.block_size)
        if (stage := stages.get(layer)) is not None:
            operator, slots = OPERATORS[stage.operator], stage.slots(length)
            scorer = 2 * length * width if operator.needs_scores else 0
            encoder += scorer + operator.flops(length, slots, width)
            length = slots
    tokens = target_tokens
    self_attention = 2 * tokens * projections + 4 * heads * tokens**2  # causal, counted in full as the counter does
    queries = 2 * width * heads
    cross_attention = 2 * (tokens * queries + length * (projections - queries)) + 4 * heads * tokens * length
    decoder = model.decoder_layers * (self_attention + cross_attention + 2 * tokens * ffn)
    return ForwardFlops(encoder, decoder + 2 * tokens * width * vocab_size)


def _compressor_flops(
    model: CompressorArchitecture, vocab_size: int, source_tokens: int, target_tokens: int
) -> ForwardFlops:
    """The prompt's few tokens are not counted."""
    width, out = model.encoder["hidden_size"], model.reader["hidden_size"]
    weights, attention = _stock_layer(model.encoder)
    stages = {stage.after_layer: stage for stage in model.pooling}
    length, encoder = source_tokens, 0.0
    for layer in range(model.num_layers + 1):
        if layer:
            encoder += 2 * length * weights + 4 * attention * _count_pairs(length, model.block_size)
        if (stage := stages.get(layer)) is not None:
            operator, slots = OPERATORS[stage.operator], stage.slots(length)
            carried = width if model.carry_embeddings else 0
            scorer = 2 * length * width if operator.needs_scores else 0
            encoder += scorer + operator.flops(length, slots, width + carried)
            length = slots
    encoder += 2 * length * (width * out + out**2)
    weights, attention = _stock_layer(model.reader)
    tokens = length + target_tokens - 1
    reader = model.reader["num_hidden_layers"] * (2 * tokens * weights + 4 * attention * tokens**2)
    return ForwardFlops(encoder, reader + 2 * target_tokens * out * vocab_size)


def _stock_layer(config: dict[str, Any]) -> tuple[int, int]:
    """Weights of one layer of a causal language model with a gated feed-forward network, and its heads' whole width."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    keys = config.get("num_key_value_heads") or heads
    return width * head * 2 * (heads + keys) + 3 * width * config["intermediate_size"], heads * head


def feed_forward_weights(model: Architecture) -> int:
    """Weights of one layer's feed-forward network, biases left out."""
    return (3 if model.gated else 2) * model.d_model * model.ffn_dim


def attention_weights(model: Architecture) -> int:
    """Weights of one attention's four projections, biases left out."""
    return 2 * model.d_model * model.head_width * (model.num_heads + (model.kv_heads or model.num_heads))


def batch_flops(model: Architecture | CompressorArchitecture, vocab_size: int, batch: dict[str, torch.Tensor]) -> float:
    """Forward and backward pass of a micro batch, without padding."""
    sources, targets = batch["attention_mask"].sum(1).tolist(), (batch["labels"] >= 0).sum(1).tolist()
    forward = (
        forward_flops(model, vocab_size, source, target).total
        for source, target in zip(sources, targets, strict=True)
        if target
    )
    return 3 * sum(forward)


def peak_tflops(precision: str, given: float | None) -> float | None:
    """What one device can do: as given, else from its name; None where neither is known."""
    if given is not None or not torch.cuda.is_available():
        return given
    name = torch.cuda.get_device_name()
    return next((peaks.get(precision) for part, peaks in PEAK_TFLOPS.items() if part in name), None)


def _count_pairs(length: int, block_size: int | None) -> int:
    """Pairs of a query and a key in blockwise self-attention."""
    if block_size is None:
        return length**2
    full, rest = divmod(length, block_size)
    return full * block_size**2 + rest**2

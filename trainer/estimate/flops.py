"""The model's own count of its work: floating-point operations of the matrix products, from the lengths alone.

Counted as `torch.utils.flop_counter` counts, two per multiply-add; norms, softmax, embeddings and the sums of the
poolers that are linear in n·d (less than a thousandth) are left out, as there. Real tokens count, padding does not:
what is computed on padding is not useful work. What activation checkpointing computes again is not counted (Chowdhery
et al. 2022, PaLM, appendix B). How a backward pass is counted: `products`.
"""

from collections.abc import Iterable
from typing import Any

import torch

from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.trainer.estimate.products import EVERYTHING, Products, Trained
from transpooler.trainer.estimate.walks import walk_compressor, walk_seq2seq

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


def document_work(
    model: Architecture | CompressorArchitecture,
    vocab_size: int,
    source_tokens: int,
    target_tokens: int,
    trained: Trained = EVERYTHING,
) -> Products:
    """Count one document of `source_tokens` and its summary of `target_tokens`, </s> included in both.

    Of a schedule with several budgets the largest is counted.
    """
    count = Products(trained)
    walk: Any = walk_compressor if isinstance(model, CompressorArchitecture) else walk_seq2seq
    walk(count, model, vocab_size, source_tokens, target_tokens)
    return count


def batch_flops(
    model: Architecture | CompressorArchitecture,
    vocab_size: int,
    lengths: Iterable[tuple[int, int]],
    trained: Trained = EVERYTHING,
) -> float:
    """Forward and backward pass of documents of these lengths: (source tokens, target tokens)."""
    return sum(document_work(model, vocab_size, source, target, trained).total for source, target in lengths if target)


def peak_tflops(precision: str, given: float | None) -> float | None:
    """What one device can do: as given, else from its name; None where neither is known."""
    if given is not None or not torch.cuda.is_available():
        return given
    name = torch.cuda.get_device_name()
    return next((peaks.get(precision) for part, peaks in PEAK_TFLOPS.items() if part in name), None)

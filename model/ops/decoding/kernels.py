"""The C++ kernels of decoding (cpp_decoding.cpp and its headers); tests compare them with plain torch."""

import functools
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from transpooler.model.ops.cpp_extension import FAILURES, load_extension

NAMES = ("cpp_decoding.cpp", "cpp_attention.h", "cpp_formats.h", "cpp_packed_linear.h", "cpp_vectors.h")


class NoKernelsError(RuntimeError):
    """The kernels cannot be built here; the message says why and what mends it, in one line."""


@functools.cache
def extension() -> ModuleType:
    """The compiled kernels; NoKernelsError where they cannot be built."""
    source, *headers = (Path(str(files(__package__) / name)) for name in NAMES)
    try:
        return load_extension(source, headers, prefix="transpooler_decoding")
    except FAILURES as error:
        raise NoKernelsError(
            f"no C++ kernels for decoding ({str(error).splitlines()[0]}); a C++ compiler (g++) and the ninja package "
            "mend that"
        ) from error


def pack(weight: Tensor) -> Tensor:
    """Weights (outputs, width) in panels that are read in one stream; float32, bfloat16 or int8, which stays."""
    return extension().pack(weight.contiguous())


def packed_linear(x: Tensor, packed: Tensor, scales: Tensor | None, bias: Tensor | None, outputs: int) -> Tensor:
    """x float32 (..., width) -> x · (scales · weight)ᵀ + bias, float32 (..., outputs).

    `packed` is what `pack` made of weights of any of its dtypes; scales and bias are float32 (outputs,). Sums are
    float32 or exact. Where the CPU multiplies such numbers itself (AVX512 with BF16, with VNNI), inputs are rounded, to
    bfloat16 for bfloat16 weights, and for int8 to 15 bits and one scale a row. Has no gradient.
    """
    return extension().packed_linear(x, packed, scales, bias, outputs)


def attend_few(q_BGNK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v of float32 heads, (B, G, N, K); K a multiple of 16, the last dimension contiguous.

    `mask`: bool (B, G, N, M), of any strides, True = attend; a query that may attend to nothing gets 0. Has no
    gradient.
    """
    return extension().attend_few(q_BGNK.contiguous(), k_BGMK, v_BGMK, mask, scale)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round (outputs, width) to int8 with one scale per output: (int8 weight, float32 scales (outputs,))."""
    scales = weight.float().abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales

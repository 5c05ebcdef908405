"""`prepare_for_inference`: a loaded model decodes at the speed of memory.

With the few rows of a decoder's step (documents times beams) a product reads every weight once and computes little, yet
torch's own takes four times as long as reading: x [4, 512] by W [32000, 512] took 31 ms on one core of an AMD EPYC
(AVX2) that reads the 62 MiB in 7; oneDNN with packed weights 15; the kernel here 8. With AVX512, VNNI and BF16 it
streams weights for 4 rows at 28 GB/s as float, 25 as bfloat16 and 15 as int8, where memory gives 31. Attention of 4
queries to 8,192 keys, 8 heads: 9.0 ms, here 5.6. docs/benchmarks.md has whole tokens.

It costs a second copy of the decoder's weights (half or a quarter of it as bf16 or int8). Caches and sums stay float32;
what is rounded beside the weights is said in kernels.py.
"""

import warnings
from typing import Any

import torch
from torch import nn

from transpooler.model.ops.decoding import attention
from transpooler.model.ops.decoding.huge_pages import HugePages
from transpooler.model.ops.decoding.kernels import NoKernelsError, extension
from transpooler.model.ops.decoding.packed_linear import PackedLinear, pack_linear
from transpooler.model.ops.decoding.precisions import PRECISIONS


def prepare_for_inference(model: Any, precision: str = "fp32") -> Any:
    """Pack the weights of all linear maps outside the encoder, once, and return the model, in evaluation mode.

    `model`: ours of either kind, or another of `transformers`, on the CPU. What it writes is the same, up to the order
    of sums; `precision` "bf16" or "int8" (one scale per output) rounds the packed copy. state_dict and save_pretrained
    are as before; parameters no longer ask for gradients, and train(), to() and load_state_dict() raise RuntimeError.

    On a GPU there is nothing to pack: bf16 converts the whole model. ValueError for an unknown precision, and for int8
    on a GPU; RuntimeError for bf16 or int8 where the kernels cannot be built (fp32: a warning, and the model as it is).
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose among {', '.join(PRECISIONS)}")
    model = model.eval().requires_grad_(False)
    if model.device.type != "cpu":
        if precision == "int8":
            raise ValueError("precision 'int8' works on the CPU alone; use bf16 on a GPU")
        return model.to(torch.bfloat16) if precision == "bf16" else model
    try:
        extension()
    except NoKernelsError as error:
        if precision != "fp32":
            raise
        warnings.warn(f"{error}; plain torch serves, about four times slower", stacklevel=2)
        return model
    pages = HugePages()
    for linear in _writing(model):
        pack_linear(linear, precision, pages)
    if model.config._attn_implementation == "sdpa":
        # Of every part's settings first: models hold copies, and `transformers` warns of parts that it does not find.
        model.config._attn_implementation = attention.NAME
        model.set_attn_implementation(attention.NAME)
    return model


def _writing(model: Any) -> list[nn.Linear]:
    """The linear maps outside the encoder, whose products have enough rows as they are."""
    encoder = model.get_encoder()
    reading = set() if encoder is model else {id(module) for module in encoder.modules()}
    return [
        module
        for module in model.modules()
        if type(module) in (nn.Linear, PackedLinear)
        and id(module) not in reading
        and module.weight.dtype in (torch.float32, torch.bfloat16)
    ]

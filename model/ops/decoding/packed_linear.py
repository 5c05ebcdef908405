"""`nn.Linear` whose weights were packed once: its parameters and its state dict stay as they are."""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transpooler.model.ops.decoding.huge_pages import HugePages
from transpooler.model.ops.decoding.kernels import pack, packed_linear, quantize

MANY_ROWS = 64
"""From here on products of float32 are limited by arithmetic, where the vendor's library is as fast."""


class PackedLinear(nn.Linear):
    """A linear map that computes with a packed copy of its weights.

    A copy would not notice that the weights change, so training, loading and moving are refused.
    """

    packed: Tensor
    scales: Tensor | None
    packed_bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of x; RuntimeError where a gradient is asked for."""
        if x.requires_grad and torch.is_grad_enabled():
            refuse("give gradients")
        if x.numel() > MANY_ROWS * self.in_features and self.packed.dtype == torch.float32:
            return F.linear(x, self.weight, self.bias)
        return packed_linear(x.float(), self.packed, self.scales, self.packed_bias, self.out_features).to(x.dtype)

    def train(self, mode: bool = True) -> "PackedLinear":
        if mode:
            refuse("train")
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> NoReturn:
        refuse("be moved or converted")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        refuse("take other weights")


def refuse(what: str) -> NoReturn:
    """RuntimeError: a prepared model cannot do that."""
    raise RuntimeError(f"a model that was prepared for inference cannot {what}: load it again")


@torch.no_grad()
def pack_linear(linear: nn.Linear, precision: str, pages: HugePages) -> None:
    """Turn a linear map into a PackedLinear, or one of another precision; "fp32" keeps the weights' own dtype."""
    weight, scales = linear.weight.detach(), None
    packable: Any = linear  # becomes a PackedLinear
    if precision == "int8":
        weight, scales = quantize(weight)
    elif precision == "bf16":
        weight = weight.bfloat16()
    packable.__class__ = PackedLinear
    # Plain attributes, no buffers: the state dict must not know them.
    packable.packed, packable.scales = pages.copy(pack(weight)), scales
    packable.packed_bias = None if linear.bias is None else linear.bias.detach().float()

"""Attention as `transformers` calls it: few queries through our kernel, all else through `sdpa`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from transpooler.model.ops.decoding.kernels import attend_few

NAME = "transpooler_decoding"
MOST_QUERIES = 64
"""Above, arithmetic limits attention, and torch's kernel is the faster one."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Output (B, N, H, K) of queries (B, H, N, K), keys and values (B, G, M, K), H a multiple of G."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    if not _takes(query, key, value, attention_mask, groups) or (
        causal and attention_mask is None and query.shape[2] > 1
    ):
        given: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given, **kwargs)
    # Heads that share keys are further queries of one head.
    q_BGNK = query if groups == 1 else query.unflatten(1, (-1, groups)).flatten(2, 3)
    if attention_mask is not None:
        attention_mask = attention_mask.expand(*q_BGNK.shape[:3], key.shape[2])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend_few(q_BGNK, key, value, attention_mask, scale)
    return out.view(query.shape).transpose(1, 2), None


def _takes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int) -> bool:
    """Whether the kernel computes this: float32 on a CPU, few queries, a mask of bools, no gradient."""
    parts = (query, key, value)
    return (
        query.shape[2] * groups <= MOST_QUERIES
        and (groups == 1 or query.shape[2] == 1 or mask is None or mask.shape[2] == 1)
        and all(part.dtype == torch.float32 and part.device.type == "cpu" and part.stride(-1) == 1 for part in parts)
        and query.shape[-1] == value.shape[-1]
        and query.shape[-1] % 16 == 0
        and key.shape[2] > 0
        and (mask is None or (mask.dtype == torch.bool and (groups == 1 or mask.shape[1] == 1)))
        and not (torch.is_grad_enabled() and any(part.requires_grad for part in parts))
    )


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)

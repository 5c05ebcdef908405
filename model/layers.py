"""Transformer layers with the norm after the sum (post, as in the paper) or before the sublayer (pre)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from model.attention import BlockAttention, CausalAttention, CosSin, CrossAttention
from model.config import TranspoolerConfig


class FeedForward(nn.Module):
    """Two linear maps with ReLU, GELU or a SiLU gate (SwiGLU, Shazeer 2020) between them."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        functions: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swiglu": F.silu}
        self.activation = functions[config.activation]
        self.fc_in = nn.Linear(config.d_model, config.ffn_dim)
        self.gate = nn.Linear(config.d_model, config.ffn_dim) if config.activation == "swiglu" else None
        self.fc_out = nn.Linear(config.ffn_dim, config.d_model)

    def forward(self, x_BND: Tensor) -> Tensor:
        if self.gate is None:
            return self.fc_out(self.activation(self.fc_in(x_BND)))
        return self.fc_out(self.activation(self.gate(x_BND)) * self.fc_in(x_BND))


class Residual(nn.Module):
    """x + dropout(sublayer(x)) with its norm before the sublayer or after the sum."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = config.dropout

    def forward(self, x_BND: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        out = F.dropout(sublayer(self.norm(x_BND) if self.pre else x_BND), self.dropout, self.training)
        return x_BND + out if self.pre else self.norm(x_BND + out)


class EncoderLayer(GradientCheckpointingLayer):
    """Attention within blocks, then the feed-forward network."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        self.attention, self.ffn = BlockAttention(config), FeedForward(config)
        self.attention_residual, self.ffn_residual = Residual(config), Residual(config)

    def forward(self, x_BND: Tensor, mask_BN: Tensor, cos_sin: CosSin | None) -> Tensor:
        """x_BND and the result (B, N, D); mask_BN bool, True = real token."""
        x_BND = self.attention_residual(x_BND, lambda x: self.attention(x, mask_BN, cos_sin))
        return self.ffn_residual(x_BND, self.ffn)


class DecoderLayer(GradientCheckpointingLayer):
    """Causal attention, attention to what the encoder kept, feed-forward network."""

    def __init__(self, config: TranspoolerConfig, layer: int) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = CausalAttention(config, layer), CrossAttention(config, layer)
        self.ffn = FeedForward(config)
        self.self_residual, self.cross_residual, self.ffn_residual = (Residual(config) for _ in range(3))

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor,
        memory_mask_BS: Tensor,
        mask: Tensor | None,
        cos_sin: CosSin | None,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """x_BTD and the result (B, T, D); memory (B, S, D) with its bool mask; `mask` as in CausalAttention."""
        x_BTD = self.self_residual(x_BTD, lambda x: self.self_attention(x, mask, cos_sin, past_key_values))
        x_BTD = self.cross_residual(
            x_BTD, lambda x: self.cross_attention(x, memory_BSD, memory_mask_BS, past_key_values)
        )
        return self.ffn_residual(x_BTD, self.ffn)


class FinalNorm(nn.Module):
    """The norm that closes a stack of pre-norm layers; nothing after post-norm ones."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else None

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND if self.norm is None else self.norm(x_BND)


def causal_mask(num_new: int, num_past: int, mask_BM: Tensor | None, device: torch.device) -> Tensor | None:
    """Boolean mask for `num_new` queries after `num_past` cached keys, or None where SDPA's own causal rule does.

    mask_BM: (B, past + new), non-zero = attend; or a 4-dimensional boolean mask, which is used as it is.
    """
    if mask_BM is not None and mask_BM.dim() == 4:
        return mask_BM.bool()
    if mask_BM is None and (num_past == 0 or num_new == 1):
        return None
    queries = torch.arange(num_past, num_past + num_new, device=device)[:, None]
    mask = torch.arange(num_past + num_new, device=device) <= queries
    if mask_BM is None:
        return mask[None, None]
    # A padded query sees itself alone: softmax over nothing is NaN.
    itself = torch.arange(num_past + num_new, device=device) == queries
    return (mask & mask_BM[:, None, None, :].bool()) | itself

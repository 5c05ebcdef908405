"""Multi-head attention through `scaled_dot_product_attention`; blocks by reshape, not by mask.

B batch, N queries, M keys, D width, H heads, K head width, m block size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache

from model.config import TranspoolerConfig
from model.positions import rotate

CosSin = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Projections and heads; what attends to what is decided by the subclasses."""

    def __init__(self, config: TranspoolerConfig, layer: int = 0) -> None:
        super().__init__()
        self.num_heads, self.layer = config.num_heads, layer
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.d_model, config.d_model) for _ in range(4)
        )

    def split(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, H, N, K)."""
        return x_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, q_BHNK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attention output, (B, N, D); `mask` is boolean, True = attend."""
        out = F.scaled_dot_product_attention(q_BHNK, k_BHMK, v_BHMK, attn_mask=mask, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class BlockAttention(Attention):
    """The encoder's self-attention: each token sees the real tokens of its own block of m."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.block_size = config.block_size

    def forward(self, x_BND: Tensor, mask_BN: Tensor, cos_sin: CosSin | None) -> Tensor:
        """x_BND and its output (B, N, D); mask_BN bool, True = real token."""
        q, k, v = (self.split(project(x_BND)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        num_tokens = x_BND.shape[1]
        block = min(self.block_size or num_tokens, num_tokens)
        num_blocks = -(-num_tokens // block)
        padding = num_blocks * block - num_tokens
        q, k, v = (_to_blocks(part, num_blocks, padding) for part in (q, k, v))
        mask = F.pad(mask_BN, (0, padding)).reshape(-1, 1, 1, block)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=somewhere(mask))
        # (B * blocks, H, m, K) -> (B, N, D)
        out = out.transpose(1, 2).reshape(x_BND.shape[0], num_blocks * block, -1)[:, :num_tokens]
        return self.out_proj(out)


class CausalAttention(Attention):
    """The decoder's self-attention, with a cache of keys and values."""

    def forward(
        self, x_BND: Tensor, mask: Tensor | None, cos_sin: CosSin | None, cache: EncoderDecoderCache | None
    ) -> Tensor:
        """`mask`: boolean, broadcast to (B, H, N, M), or None: plainly causal, or one new token that sees all."""
        q, k, v = (self.split(project(x_BND)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        if cache is not None:
            k, v = cache.self_attention_cache.update(k, v, self.layer)
        return self.attend(q, k, v, mask, causal=mask is None and q.shape[2] > 1)


class CrossAttention(Attention):
    """The decoder's attention to what the encoder kept; keys and values are computed once per document."""

    def forward(
        self, x_BND: Tensor, memory_BMD: Tensor, memory_mask_BM: Tensor, cache: EncoderDecoderCache | None
    ) -> Tensor:
        """memory_mask_BM: bool, True = holds something."""
        q = self.split(self.q_proj(x_BND))
        if cache is not None and cache.is_updated.get(self.layer):
            stored: Any = cache.cross_attention_cache.layers[self.layer]
            k, v = stored.keys, stored.values
        else:
            k, v = self.split(self.k_proj(memory_BMD)), self.split(self.v_proj(memory_BMD))
            if cache is not None:
                k, v = cache.cross_attention_cache.update(k, v, self.layer)
                cache.is_updated[self.layer] = True
        return self.attend(q, k, v, somewhere(memory_mask_BM[:, None, None, :]), causal=False)


def somewhere(mask: Tensor) -> Tensor:
    """The mask with rows that allow nothing opened: softmax over nothing is NaN, and what comes out is never read."""
    return mask | ~mask.any(dim=-1, keepdim=True)


def _to_blocks(x_BHNK: Tensor, num_blocks: int, padding: int) -> Tensor:
    """(B, H, N, K) -> (B * blocks, H, m, K)."""
    if num_blocks == 1:
        return x_BHNK
    x = F.pad(x_BHNK, (0, 0, 0, padding)) if padding else x_BHNK
    return torch.movedim(x.unflatten(2, (num_blocks, -1)), 2, 1).flatten(0, 1)

"""Multi-head attention through the attention functions of `transformers` (sdpa, eager, registered ones).

B batch, N queries, M keys, D width, H heads, K head width; P packed tokens, R blocks of m (see `layout`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from transpooler.model.beams import beams_as_queries, queries_as_beams
from transpooler.model.config import TranspoolerConfig
from transpooler.model.layers.positions import rotate
from transpooler.model.layout import Layout, Piece

CosSin = tuple[Tensor, Tensor]
Attended = tuple[Tensor, Tensor | None]
"""The output, and the attention weights if they were requested."""


class Attention(nn.Module):
    """Projections and heads; subclasses decide which tokens attend to which."""

    is_causal = False

    def __init__(self, config: TranspoolerConfig, layer: int = 0) -> None:
        super().__init__()
        self.config, self.num_heads, self.layer = config, config.num_heads, layer
        self.head_width = width = config.architecture.head_width
        self.num_key_value_groups = config.num_heads // (config.kv_heads or config.num_heads)
        """Heads of queries that share one of keys and values; `transformers` reads it under this name."""
        self.scaling = width**-0.5 if config.attention_scale is None else config.attention_scale
        queries, keys = config.num_heads * width, config.num_heads // self.num_key_value_groups * width
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(config.d_model, wide, bias=config.attention_bias) for wide in (queries, keys, keys)
        )
        self.out_proj = nn.Linear(queries, config.d_model, bias=config.attention_bias)

    def split(self, x_BNE: Tensor) -> Tensor:
        """(B, N, H·K) -> (B, H, N, K)."""
        return x_BNE.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def attend(
        self, q_BHNK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, mask: Tensor | None, output_attentions: bool
    ) -> Attended:
        """Return the concatenated heads (B, N, D) and, if requested, the weights (B, H, N, M).

        Requesting weights selects eager attention, the only implementation that returns them. `mask`: bool (True =
        attend), or floats that are added to the scores; None: everything, or what `is_causal` allows.
        """
        name = "eager" if output_attentions else self.config._attn_implementation
        function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        out_BNHK, weights = function(
            self, q_BHNK, k_BHMK, v_BHMK, mask, scaling=self.scaling, dropout=0.0, is_causal=self.is_causal
        )
        return out_BNHK.flatten(2), weights if output_attentions else None


class BlockAttention(Attention):
    """The encoder's self-attention: each token sees the real tokens of its own block of m."""

    def forward(
        self, x_PD: Tensor, layout: Layout | Piece, mask: Tensor | None, cos_sin: CosSin | None, output_attentions: bool
    ) -> Attended:
        """x_PD and its output (P, D); weights (B, H, N, m), of a whole layout alone: column j is the j-th token of the
        query's block.

        `mask` (R or 1, H or 1, m or 1, m) as in `attend`: the layout's, or that and a bias.
        """
        q, k, v = (project(x_PD) for project in (self.q_proj, self.k_proj, self.v_proj))
        if cos_sin is not None:
            q, k = (rotate(part.unflatten(-1, (-1, self.head_width)), cos_sin).flatten(1) for part in (q, k))
        q, k, v = (self.split(layout.blocks.to_rows(part)) for part in (q, k, v))
        out_RmD, weights = self.attend(q, k, v, mask, output_attentions)
        if weights is not None and isinstance(layout, Layout) and layout.blocks.rows > len(layout.lengths):
            # (R, H, m, m) -> (B, H, N, m). The output is computed from the tensor that is returned, so that callers can
            # differentiate with respect to it.
            weights = layout.documents.to_rows(layout.blocks.to_tokens(weights.transpose(1, 2))).transpose(1, 2)
            regrouped = layout.blocks.to_rows(layout.documents.to_tokens(weights.transpose(1, 2))).transpose(1, 2)
            out_RmD = (regrouped @ repeat_heads(v, self.num_key_value_groups)).transpose(1, 2).flatten(2)
        return self.out_proj(layout.blocks.to_tokens(out_RmD)), weights


class CausalAttention(Attention):
    """The decoder's self-attention, with a cache of keys and values."""

    is_causal = True

    def forward(
        self,
        x_BND: Tensor,
        mask: Tensor | None,
        cos_sin: CosSin | None,
        cache: EncoderDecoderCache | None,
        output_attentions: bool,
    ) -> Attended:
        """`mask` broadcasts to (B, H, N, M). None: a plain causal mask, or a single new token, which sees all."""
        q, k, v = (self.split(project(x_BND)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        if cache is not None:
            k, v = cache.self_attention_cache.update(k, v, self.layer)
        out, weights = self.attend(q, k, v, mask, output_attentions)
        return self.out_proj(out), weights


class CrossAttention(Attention):
    """The decoder's attention to what the encoder kept; keys and values are computed once per document."""

    def forward(
        self,
        x_BND: Tensor,
        memory_BMD: Tensor,
        memory_mask: Tensor,
        cache: EncoderDecoderCache | None,
        output_attentions: bool,
    ) -> Attended:
        """x_BND has one row per document of memory_BMD, or one per beam; memory_mask is bool (B, 1, 1, M)."""
        q = self.split(self.q_proj(x_BND))
        if cache is not None and cache.is_updated.get(self.layer):
            stored: Any = cache.cross_attention_cache.layers[self.layer]
            k, v = stored.keys, stored.values
        else:
            k, v = self.split(self.k_proj(memory_BMD)), self.split(self.v_proj(memory_BMD))
            if cache is not None:
                k, v = cache.cross_attention_cache.update(k, v, self.layer)
                cache.is_updated[self.layer] = True
        out, weights = self.attend(beams_as_queries(q, k.shape[0]), k, v, memory_mask, output_attentions)
        weights = None if weights is None else queries_as_beams(weights, q.shape[0], dim=2)
        return self.out_proj(queries_as_beams(out, q.shape[0], dim=1)), weights


def eager_attention(
    module: Attention, q_BHNK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, mask: Tensor | None, *, scaling: float, **kwargs
) -> tuple[Tensor, Tensor]:
    """Softmax attention step by step; output (B, N, H, K) and weights (B, H, N, M). Masks as in `Attention.attend`."""
    k_BHMK, v_BHMK = (repeat_heads(part, module.num_key_value_groups) for part in (k_BHMK, v_BHMK))
    scores = q_BHNK @ k_BHMK.transpose(2, 3) * scaling
    num_queries, num_keys = scores.shape[2:]
    if mask is None and module.is_causal and num_queries > 1:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores.device).tril(num_keys - num_queries)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1)
    return (weights @ v_BHMK).transpose(1, 2).contiguous(), weights


def repeat_heads(x_BGMK: Tensor, groups: int) -> Tensor:
    """(B, G, M, K) -> (B, G·groups, M, K): each head of keys or values, once for each head of queries that reads it."""
    return x_BGMK if groups == 1 else x_BGMK.repeat_interleave(groups, dim=1)

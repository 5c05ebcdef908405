"""Transformer layers with the norm after the sum (post, as in the paper) or before the sublayer (pre)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from transpooler.model.architecture import GATED
from transpooler.model.config import TranspoolerConfig
from transpooler.model.layers.attention import Attended, BlockAttention, CausalAttention, CosSin, CrossAttention
from transpooler.model.layers.norms import make_norm
from transpooler.model.layout import Layout, Piece

GELU_TANH = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": GELU_TANH,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": GELU_TANH,
}


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, or with a gate (GLU, Shazeer 2020)."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.fc_in = nn.Linear(config.d_model, config.ffn_dim, bias=config.ffn_bias)
        gated = config.activation in GATED
        self.gate = nn.Linear(config.d_model, config.ffn_dim, bias=config.ffn_bias) if gated else None
        self.fc_out = nn.Linear(config.ffn_dim, config.d_model, bias=config.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.gate is None:
            return self.fc_out(self.activation(self.fc_in(x)))
        return self.fc_out(self.activation(self.gate(x)) * self.fc_in(x))


class Residual(nn.Module):
    """x + dropout(sublayer(x)), with a norm before the sublayer (pre) or after the sum (post); called in two halves."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.norm = make_norm(config)
        self.dropout = config.dropout

    def before(self, x: Tensor) -> Tensor:
        """Return the input of the sublayer."""
        return self.norm(x) if self.pre else x

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        """Add the output of the sublayer to the stream."""
        x = x + (F.dropout(out, self.dropout) if self.training else out)
        return x if self.pre else self.norm(x)


class EncoderLayer(GradientCheckpointingLayer):
    """Attention within blocks, then the feed-forward network."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        self.attention, self.ffn = BlockAttention(config), FeedForward(config)
        self.attention_residual, self.ffn_residual = Residual(config), Residual(config)

    def forward(
        self, x_PD: Tensor, layout: Layout | Piece, mask: Tensor | None, cos_sin: CosSin | None, output_attentions: bool
    ) -> Attended:
        """Packed tokens (P, D) -> (P, D), and the weights as BlockAttention returns them."""
        read = self.attention_residual.before(x_PD)
        out, weights = self.attention(read, layout, mask, cos_sin, output_attentions)
        x_PD = self.attention_residual.after(x_PD, out)
        return self.ffn_residual.after(x_PD, self.ffn(self.ffn_residual.before(x_PD))), weights


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
        memory_mask: Tensor,
        mask: Tensor | None,
        cos_sin: CosSin | None,
        output_attentions: bool,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, T, D) -> (B, T, D), and the weights of both attentions; masks as these take them."""
        cache = past_key_values
        out, weights = self.self_attention(self.self_residual.before(x_BTD), mask, cos_sin, cache, output_attentions)
        x_BTD = self.self_residual.after(x_BTD, out)
        read = self.cross_residual.before(x_BTD)
        out, cross_weights = self.cross_attention(read, memory_BSD, memory_mask, cache, output_attentions)
        x_BTD = self.cross_residual.after(x_BTD, out)
        return self.ffn_residual.after(x_BTD, self.ffn(self.ffn_residual.before(x_BTD))), weights, cross_weights

"""The architecture of a pooling encoder-decoder as plain values (no torch here, so that it loads at once)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from transpooler.model.ops.schedule import PoolingStage, pooler_problems, schedule_problems

CHOICES = {
    "kind": ("seq2seq", "compressor"),
    "activation": ("relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"),
    "norm": ("pre", "post"),
    "norm_kind": ("layer", "rms"),
    "positions": ("sinusoidal", "rotary", "learned", "relative"),
    "sinusoid_steps": ("half", "half_less_one"),
    "block_positions": ("document", "block"),
    "pooling_norm": ("after", "before"),
}

GATED = ("swiglu", "geglu")
"""Activations that are gates."""
COUNTS = (
    *("d_model", "encoder_layers", "decoder_layers", "num_heads", "head_dim", "kv_heads", "ffn_dim", "max_positions"),
    *("relative_buckets", "relative_max_distance", "vocab_rows"),
)
"""Fields that are at least 1."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Dimensions and pooling schedule. Defaults are the paper's deep setting without pooling (= Blockwise)."""

    kind: str = "seq2seq"
    """seq2seq (this encoder-decoder) or compressor (any causal language model as the reader; it has other keys)."""
    d_model: int = 512
    """Width."""
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_heads: int = 8
    head_dim: int | None = None
    """Width of a head; null = d_model / num_heads."""
    kv_heads: int | None = None
    """Heads of keys and values, shared by groups of queries' heads (Ainslie et al. 2023); null = num_heads."""
    attention_scale: float | None = None
    """Factor of the scores q·k; null = head_dim^-1/2. T5's is 1."""
    attention_bias: bool = True
    """Biases in the four projections of attention."""
    ffn_dim: int = 2048
    """Inner width of the feed-forward layers."""
    ffn_bias: bool = True
    activation: str = "relu"
    """relu, gelu, gelu_tanh or silu; swiglu and geglu are silu and gelu_tanh as gates (Shazeer 2020)."""
    norm: str = "post"
    """post (paper) or pre."""
    norm_kind: str = "layer"
    """layer (LayerNorm) or rms (RMSNorm, Zhang and Sennrich 2019: no mean, no bias)."""
    norm_eps: float = 1e-5
    positions: str = "sinusoidal"
    """sinusoidal (paper; added to the embeddings), rotary, learned (BART's: a table of max_positions, added) or
    relative (T5's: a bias for each bucket of distances). Rotary and relative ones follow the tokens that were kept."""
    max_positions: int = 8192
    """learned: rows of the table; no document (no block, with block_positions=block) and no summary may be longer, in
    tokens."""
    sinusoid_steps: str = "half"
    """sinusoidal: wavelengths go to 10000 in d_model/2 steps (half), or in one less (half_less_one, fairseq's)."""
    position_offset: int = 0
    """sinusoidal: number of the first position."""
    relative_buckets: int = 32
    relative_max_distance: int = 128
    """relative: distances from here on share a bucket."""
    relative_per_layer: bool = False
    """relative: a table for each layer, as UMT5 has, not one for each stack."""
    block_positions: str = "document"
    """Where a token's sinusoid or learned position counts from: its document, or its encoder block."""
    embedding_scale: float | None = None
    """Factor of the token embeddings; null = d_model^1/2 with sinusoidal positions, else 1."""
    embedding_norm: bool = False
    """A norm over the embeddings before the first layer, as BART has."""
    decoder_norm_first: bool = False
    """embedding_norm in the decoder comes before positions are added, as in Blenderbot-small."""
    tied_head: bool = True
    """The head's weights are the embeddings."""
    logits_scale: float = 1.0
    """Factor of what the head reads. T5's is d_model^-1/2."""
    logits_bias: bool = False
    """A bias for each token of the vocabulary, as Marian has."""
    decoder_start_token_id: int | None = None
    """Token with which the decoder begins; null = the tokenizer's <s>."""
    vocab_rows: int | None = None
    """Rows of the table of embeddings; null = one for each token of the tokenizer, at least these."""
    block_size: int | None = 512
    """Tokens per encoder attention block; null = full attention (the vanilla Transformer)."""
    stagger_blocks: bool = False
    """Every second layer's blocks begin half a block earlier, so that tokens see past the borders (Phang et al. 2022,
    PEGASUS-X); a document's first block is then half as long."""
    pooling: tuple[PoolingStage, ...] = field(default_factory=tuple)
    """The pooling schedule, in order of layers; empty = no pooling."""
    pooling_base: float = 20.0
    """Base b of the pair softmax, softmax(b^s) (Successive Halving paper)."""
    pooling_norm: str = "after"
    """For norm=pre. after: pool the residual stream and normalise later; before: pool the normalised tokens. The latter
    is what the paper's post-norm layers do, and what gates need: a norm after the last pooling would undo them."""
    scorer_init_std: float | None = None
    """Standard deviation of the scorers' initial weights; null = init_std. At 0 pooling starts as plain means, so that
    no kind of token is dropped before the decoder has learned to use it (not for operator=hard, which would keep the
    first tokens)."""
    exploration_noise: float = 0.0
    """Gumbel noise on the logits of the scorers in training, in multiples of its standard form, so that tokens which
    would be dropped are tried, too. A function of seed, step and document. 0 = none; at evaluation there is none."""
    dropout: float = 0.1
    init_std: float = 0.02

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                yield name, f"is {getattr(self, name)!r}; choose one of {', '.join(allowed)}"
        for name in COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                yield name, f"is {value}; must be at least 1"
        if self.head_dim is None and self.num_heads >= 1 and self.d_model % (2 * self.num_heads):
            yield "d_model", f"is {self.d_model}; must be a multiple of 2 x num_heads = {2 * self.num_heads}"
        if (self.head_dim or 2) % 2:
            yield "head_dim", f"is {self.head_dim}; must be even"
        if self.kv_heads and self.num_heads % self.kv_heads:
            yield "kv_heads", f"is {self.kv_heads}; must divide num_heads = {self.num_heads}"
        for name in ("norm_eps", "embedding_scale", "attention_scale", "logits_scale"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                yield name, f"is {value}; must be above 0"
        for name in ("position_offset", "decoder_start_token_id"):
            if (getattr(self, name) or 0) < 0:
                yield name, f"is {getattr(self, name)}; must not be negative"
        # A direction has half of the buckets, and half of those count single steps.
        if self.relative_buckets % 4 or not self.relative_buckets < 2 * self.relative_max_distance:
            most = f"below 2 x relative_max_distance = {2 * self.relative_max_distance}"
            yield "relative_buckets", f"is {self.relative_buckets}; must be a multiple of 4, and {most}"
        if self.block_size is not None and self.block_size < 1:
            yield "block_size", f"is {self.block_size}; must be at least 1, or null for full attention"
        if self.stagger_blocks and (self.block_size is None or self.block_size < 2):
            yield "stagger_blocks", f"is true, but block_size is {self.block_size}; needs blocks of at least 2 tokens"
        if not 0 <= self.dropout < 1:
            yield "dropout", f"is {self.dropout}; must lie in [0, 1)"
        if self.init_std < 0:
            yield "init_std", f"is {self.init_std}; must not be negative"
        yield from pooler_problems(self.pooling_base, self.scorer_init_std, self.exploration_noise)
        yield from schedule_problems(self.pooling, first=1, last=self.encoder_layers)

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layers have a gate."""
        return self.activation in GATED


# The fields that describe the model, without its kind and what depends on the vocabulary.
SHAPE_FIELDS = tuple(
    entry.name for entry in fields(Architecture) if entry.name not in ("kind", "vocab_rows", "decoder_start_token_id")
)

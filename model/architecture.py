"""The architecture of a pooling encoder-decoder as plain values (no torch here, so that it loads at once)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OPERATOR_NAMES = ("successive_halving", "hard", "random", "strided_mean", "iterative_softmax")
"""The rows of `ops.operators.OPERATORS`, which needs torch."""
CHOICES = {
    "kind": ("seq2seq", "compressor"),
    "activation": ("relu", "gelu", "swiglu"),
    "norm": ("pre", "post"),
    "positions": ("sinusoidal", "rotary", "learned"),
    "pooling_norm": ("after", "before"),
}


@dataclass(frozen=True, kw_only=True)
class PoolingStage:
    """One entry of the pooling schedule: pool what leaves encoder layer `after_layer`."""

    after_layer: int
    """1-based number of the encoder layer after which to pool."""
    length: int | None = None
    """Tokens kept of each document (shorter documents pass unchanged). Give this or `ratio`."""
    ratio: float | None = None
    """Share of the document's tokens kept, 1/2, 1/4, 1/8, ... Give this or `length`."""
    operator: str = "successive_halving"
    """How tokens are pooled: successive_halving, or a baseline (hard, random, strided_mean, iterative_softmax)."""

    def slots(self, num_tokens: int) -> int:
        """Slots that a document of `num_tokens` fills after the stage: min(length, n) or ceil(ratio · n)."""
        if self.length is not None:
            return min(self.length, num_tokens)
        assert self.ratio is not None  # Architecture.problems
        return -(-num_tokens // round(1 / self.ratio))

    def slots_of_each(self, num_tokens_B: "Tensor") -> "Tensor":
        """`slots` of a batch: int64 (B,) -> int64 (B,), without waiting for a GPU."""
        if self.length is not None:
            return num_tokens_B.clamp(max=self.length)
        assert self.ratio is not None
        return -(-num_tokens_B // round(1 / self.ratio))


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
    ffn_dim: int = 2048
    """Inner width of the feed-forward layers."""
    activation: str = "relu"
    """relu, gelu or swiglu (gated)."""
    norm: str = "post"
    """post (paper) or pre."""
    positions: str = "sinusoidal"
    """sinusoidal (paper; added to the embeddings), rotary (follows the positions of pooled tokens) or learned
    (BART's: a table of max_positions, added)."""
    max_positions: int = 8192
    """learned: rows of the table; no document and no summary may be longer, in tokens."""
    embedding_norm: bool = False
    """A LayerNorm over the embeddings before the first layer, as BART has."""
    block_size: int | None = 512
    """Tokens per encoder attention block; null = full attention (the vanilla Transformer)."""
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
    dropout: float = 0.1
    init_std: float = 0.02

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                yield name, f"is {getattr(self, name)!r}; choose one of {', '.join(allowed)}"
        for name in ("d_model", "encoder_layers", "decoder_layers", "num_heads", "ffn_dim", "max_positions"):
            if getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}; must be at least 1"
        if self.num_heads >= 1 and self.d_model % (2 * self.num_heads):
            yield "d_model", f"is {self.d_model}; must be a multiple of 2 x num_heads = {2 * self.num_heads}"
        if self.block_size is not None and self.block_size < 1:
            yield "block_size", f"is {self.block_size}; must be at least 1, or null for full attention"
        if not 0 <= self.dropout < 1:
            yield "dropout", f"is {self.dropout}; must lie in [0, 1)"
        if self.init_std < 0:
            yield "init_std", f"is {self.init_std}; must not be negative"
        yield from pooler_problems(self.pooling_base, self.scorer_init_std)
        yield from schedule_problems(self.pooling, first=1, last=self.encoder_layers)


def shape_fields() -> list[str]:
    """Names of the fields that describe the model, without its kind."""
    return [entry.name for entry in fields(Architecture) if entry.name != "kind"]


def pooling_stage(values: PoolingStage | dict[str, Any]) -> PoolingStage:
    """The stage with these fields; ValueError where one is unknown or after_layer is missing."""
    if isinstance(values, PoolingStage):
        return values
    known = {entry.name for entry in fields(PoolingStage)}
    if "after_layer" not in values or not set(values) <= known:
        raise ValueError(f"pooling: stage {values} needs after_layer and may have {', '.join(sorted(known))}")
    return PoolingStage(**values)


def pooler_problems(pooling_base: float, scorer_init_std: float | None) -> Iterator[tuple[str, str]]:
    """(key, message) of every bad value among the poolers' settings, which all kinds of model share."""
    if not 1 < pooling_base < math.inf:
        yield "pooling_base", f"is {pooling_base}; must be above 1, and finite"
    if scorer_init_std is not None and not 0 <= scorer_init_std < math.inf:
        yield "scorer_init_std", f"is {scorer_init_std}; must be finite and not negative"


def schedule_problems(pooling: Sequence[PoolingStage], *, first: int, last: int) -> Iterator[tuple[str, str]]:
    """(key, message) of every bad stage of a schedule over the layers `first` to `last`."""
    previous: PoolingStage | None = None
    for index, stage in enumerate(pooling):
        key = f"pooling[{index}]"
        if not first <= stage.after_layer <= last:
            yield f"{key}.after_layer", f"is {stage.after_layer}; must lie in {first}..{last}"
        if (stage.length is None) == (stage.ratio is None):
            yield key, "needs exactly one of length and ratio"
        if stage.length is not None and stage.length < 1:
            yield f"{key}.length", f"is {stage.length}; must be at least 1"
        if stage.ratio is not None and not (0 < stage.ratio < 1 and math.frexp(stage.ratio)[0] == 0.5):
            yield f"{key}.ratio", f"is {stage.ratio}; must be 1/2, 1/4, 1/8, ..."
        if stage.operator not in OPERATOR_NAMES:
            yield f"{key}.operator", f"is {stage.operator!r}; choose one of {', '.join(OPERATOR_NAMES)}"
        if previous and stage.after_layer <= previous.after_layer:
            yield f"{key}.after_layer", f"is {stage.after_layer}; must be above the stage before it"
        if previous and previous.length and stage.length and stage.length >= previous.length:
            yield f"{key}.length", f"is {stage.length}; must be below the stage before it ({previous.length})"
        previous = stage

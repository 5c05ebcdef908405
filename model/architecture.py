"""The architecture of a pooling encoder-decoder as plain values (no torch here, so that it loads at once)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OPERATOR_NAMES = (
    *("successive_halving", "threshold", "hard", "random", "strided_mean", "weighted_mean", "iterative_softmax"),
)
"""The rows of `ops.operators.OPERATORS`, which needs torch."""
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

HIGHEST_BASE = 1e30
"""Of a pooler: base ** score and its gradient fit into float32."""
GATED = ("swiglu", "geglu")
"""Activations that are gates."""
COUNTS = (
    *("d_model", "encoder_layers", "decoder_layers", "num_heads", "head_dim", "kv_heads", "ffn_dim", "max_positions"),
    *("relative_buckets", "relative_max_distance", "vocab_rows"),
)
"""Fields that are at least 1."""


@dataclass(frozen=True, kw_only=True)
class PoolingStage:
    """One entry of the pooling schedule: pool what leaves encoder layer `after_layer`."""

    after_layer: int
    """1-based number of the encoder layer after which to pool."""
    length: int | tuple[int, ...] | None = None
    """Tokens kept of each document (shorter documents pass unchanged). Give this or `ratio`. A list makes one model for
    several budgets: training draws one of them in every step, and `--keep` chooses (the default is the largest)."""
    ratio: float | tuple[float, ...] | None = None
    """Share of the document's tokens kept, 1/2, 1/4, 1/8, ..., or a list of them. Give this or `length`."""
    operator: str = "successive_halving"
    """How tokens are pooled: successive_halving, threshold (a hard gather that every score learns from), or a baseline
    (hard, random, strided_mean, weighted_mean, iterative_softmax)."""

    def slots(self, num_tokens: int) -> int:
        """Slots that a document of `num_tokens` fills after the stage: min(length, n) or ceil(ratio · n)."""
        if isinstance(self.length, int):
            return min(self.length, num_tokens)
        return -(-num_tokens // round(1 / self.single_ratio))

    def slots_of_each(self, num_tokens_B: "Tensor") -> "Tensor":
        """`slots` of a batch: int64 (B,) -> int64 (B,), without waiting for a GPU."""
        if isinstance(self.length, int):
            return num_tokens_B.clamp(max=self.length)
        return -(-num_tokens_B // round(1 / self.single_ratio))

    @property
    def single_ratio(self) -> float:
        """The ratio of a stage that has no length and one budget, as those of `schedules`."""
        assert isinstance(self.ratio, float)
        return self.ratio

    @property
    def budgets(self) -> tuple[int, ...] | tuple[float, ...]:
        """Lengths or ratios, at least one of them."""
        found = self.ratio if self.length is None else self.length
        assert found is not None  # schedule_problems
        return found if isinstance(found, tuple) else (found,)


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
        if not 0 <= self.dropout < 1:
            yield "dropout", f"is {self.dropout}; must lie in [0, 1)"
        if self.init_std < 0:
            yield "init_std", f"is {self.init_std}; must not be negative"
        yield from pooler_problems(self.pooling_base, self.scorer_init_std)
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


def pooling_stage(values: PoolingStage | dict[str, Any]) -> PoolingStage:
    """The stage with these fields; ValueError where one is unknown or after_layer is missing."""
    if isinstance(values, PoolingStage):
        return values
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    known = {entry.name for entry in fields(PoolingStage)}
    if "after_layer" not in values or not set(values) <= known:
        raise ValueError(f"pooling: stage {values} needs after_layer and may have {', '.join(sorted(known))}")
    return PoolingStage(**values)


def pooler_problems(pooling_base: float, scorer_init_std: float | None) -> Iterator[tuple[str, str]]:
    """(key, message) of every bad value among the poolers' settings, which all kinds of model share."""
    if not 1 < pooling_base <= HIGHEST_BASE:
        yield "pooling_base", f"is {pooling_base}; must be above 1, and at most {HIGHEST_BASE:g}"
    if scorer_init_std is not None and not 0 <= scorer_init_std < math.inf:
        yield "scorer_init_std", f"is {scorer_init_std}; must be finite and not negative"


def schedules(pooling: Sequence[PoolingStage]) -> list[tuple[PoolingStage, ...]]:
    """The schedule at each of its budgets, from the largest to the smallest; stages with one budget are in all."""
    number = max((len(stage.budgets) for stage in pooling), default=1)
    found = [tuple(_at(stage, stage.budgets[i % len(stage.budgets)]) for stage in pooling) for i in range(number)]
    return sorted(found, key=lambda schedule: [stage.budgets for stage in schedule], reverse=True)


def schedule_that_keeps(pooling: Sequence[PoolingStage], keep: float | None) -> tuple[PoolingStage, ...]:
    """The schedule whose last stage keeps `keep` tokens, or below 1 this share of its tokens; None: the largest budget.

    What is not among the budgets changes the last stage alone. Raises ValueError where that cannot be.
    """
    options = schedules(pooling)
    if keep is None:
        return options[0]
    if not pooling:
        raise ValueError(f"keep {keep}: this model pools nothing")
    if math.isfinite(keep) and keep == round(keep):
        keep = int(keep)
    for schedule in options:
        if schedule[-1].budgets == (keep,):
            return schedule
    changed = (*options[0][:-1], _at(pooling[-1], keep))
    problems = [message for _, message in schedule_problems(changed, first=0, last=pooling[-1].after_layer)]
    if problems:
        known = ", ".join(str(schedule[-1].budgets[0]) for schedule in options)
        raise ValueError(f"keep {problems[0]}; trained with {known}")
    return changed


def _at(stage: PoolingStage, budget: float) -> PoolingStage:
    if stage.budgets == (budget,):
        return stage
    if isinstance(budget, int):
        return replace(stage, length=budget, ratio=None)
    return replace(stage, length=None, ratio=budget)


def schedule_problems(pooling: Sequence[PoolingStage], *, first: int, last: int) -> Iterator[tuple[str, str]]:
    """(key, message) of every bad stage of a schedule over the layers `first` to `last`."""
    numbers: set[int] = set()
    for index, stage in enumerate(pooling):
        key = f"pooling[{index}]"
        if not first <= stage.after_layer <= last:
            yield f"{key}.after_layer", f"is {stage.after_layer}; must lie in {first}..{last}"
        if index and stage.after_layer <= pooling[index - 1].after_layer:
            yield f"{key}.after_layer", f"is {stage.after_layer}; must be above the stage before it"
        if stage.operator not in OPERATOR_NAMES:
            yield f"{key}.operator", f"is {stage.operator!r}; choose one of {', '.join(OPERATOR_NAMES)}"
        if (stage.length is None) == (stage.ratio is None):
            yield key, "needs exactly one of length and ratio"
            return
        yield from _budget_problems(key, stage)
        numbers.add(len(stage.budgets))
    if len(numbers - {1}) > 1 or 0 in numbers:
        counts = ", ".join(map(str, sorted(numbers)))
        yield "pooling", f"has stages with {counts} budgets; those with several must have equally many"
        return
    for schedule in schedules(pooling):
        for index, (before, stage) in enumerate(pairwise(schedule), 1):
            if isinstance(before.length, int) and isinstance(stage.length, int) and stage.length >= before.length:
                message = f"is {stage.length}; must be below the stage before it ({before.length})"
                yield f"pooling[{index}].length", message


def _budget_problems(key: str, stage: PoolingStage) -> Iterator[tuple[str, str]]:
    for value in stage.budgets:
        if stage.length is not None and value < 1:
            yield f"{key}.length", f"is {value}; must be at least 1"
        if stage.ratio is not None and not (0 < value < 1 and math.frexp(value)[0] == 0.5):
            yield f"{key}.ratio", f"is {value}; must be 1/2, 1/4, 1/8, ..."
    if len(set(stage.budgets)) < len(stage.budgets):
        yield key, f"names a budget twice: {', '.join(map(str, stage.budgets))}"

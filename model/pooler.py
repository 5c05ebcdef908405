"""One stage of the pooling schedule: score every token, keep the few that matter."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from transpooler.model.config import TranspoolerConfig
from transpooler.model.layers.context_parallel import Share
from transpooler.model.layers.norms import FinalNorm
from transpooler.model.layers.streaming import map_in_pieces
from transpooler.model.layout import Layout
from transpooler.model.ops.exploration import document_keys, gumbel_noise
from transpooler.model.ops.operators import OPERATORS, tie_scores
from transpooler.model.ops.schedule import PoolingStage, schedule_that_keeps
from transpooler.model.ops.soft_topk import SoftTopK
from transpooler.model.ops.soft_topk.argument_checks import promote
from transpooler.model.ops.spans import pool_spans, spread_spans
from transpooler.model.outputs import PooledStage

SCORE_FLOOR = 1e-5


class Scorer(nn.Linear):
    """Linear(D, 1) in float32 at least; outside it is like any other, so that LoRA and quantisers can wrap it."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 1)."""
        return F.linear(promote(x), promote(self.weight), promote(self.bias))


def score(scorer: nn.Module, x_BND: Tensor, noise_BN: Tensor | None = None) -> Tensor:
    """(B, N, D) -> (B, N) in (0, 1]: sigmoid(scorer + noise) + 1e-5, in float32 at least.

    Whatever autocast says: bfloat16 scores would lose the order.
    """
    # The meta device has no autocast that could be turned off.
    with nullcontext() if x_BND.is_meta else torch.autocast(x_BND.device.type, enabled=False):
        logits_BN = promote(scorer(x_BND)).squeeze(-1)
        logits_BN = logits_BN if noise_BN is None else logits_BN + noise_BN.to(logits_BN.dtype)
        return logits_BN.sigmoid() + SCORE_FLOOR


def closes_stack(config: TranspoolerConfig, stage: PoolingStage) -> bool:
    """Whether the stage pools the output of the encoder's final norm, so that no norm follows."""
    return config.norm == "pre" and config.pooling_norm == "before" and stage.after_layer == config.encoder_layers


def encoder_pooler(config: TranspoolerConfig, stage: PoolingStage) -> "Pooler":
    """The pooler of a stage of the encoder-decoder."""
    # Between pre-norm layers the residual stream has no fixed scale; the score should not depend on it.
    norm = None if closes_stack(config, stage) else FinalNorm(config)
    pools_normed = config.pooling_norm == "before"
    shared: dict[str, Any] = {"base": config.pooling_base, "exploration": float(config.exploration_noise)}
    return Pooler(stage, config.d_model, **shared, norm=norm, pools_normed=pools_normed)


class Pooler(GradientCheckpointingLayer):
    """Pools the output of an encoder layer; a document's result depends on that document alone."""

    def __init__(
        self,
        stage: PoolingStage,
        dim: int,
        *,
        base: float,
        exploration: float = 0.0,
        norm: nn.Module | None = None,
        pools_normed: bool = False,
    ) -> None:
        """`norm` is what the scorer reads through (None: it reads the tokens themselves). `stage` has one budget."""
        super().__init__()
        self.stage, self.base, self.exploration, self.pools_normed = stage, base, exploration, pools_normed
        self.draw: Tensor | None = None
        """int64 (): what the noise is drawn from; None: from torch's generator, as dropout is."""
        self.scorer = Scorer(dim) if OPERATORS[stage.operator].needs_scores else None
        self.score_norm = norm if self.scorer is not None or pools_normed else None

    @property
    def explores(self) -> bool:
        """Whether the scores have noise now."""
        return self.training and self.exploration > 0 and self.scorer is not None

    def forward(
        self,
        x_BND: Tensor,
        mask_BN: Tensor,
        carried_BNE: Tensor | None = None,
        keys_B: Tensor | None = None,
        share: Share | None = None,
    ) -> SoftTopK:
        """x_BND (B, N, D), mask_BN bool (B, N) -> SoftTopK with S slots, as many as N tokens would fill.

        carried_BNE is pooled with them, without a say in the scores: the embeddings are then (B, S, D + E). With
        `share` the tokens are this rank's, and the result is that of all ranks' tokens, on each of them.
        keys_B: what `keys_for` gives, which exploration needs in training.
        """
        pooled_BND, scores_BN = self._read(x_BND, self._noise(keys_B, x_BND.shape[1], share))
        if carried_BNE is not None:
            pooled_BND = torch.cat([pooled_BND, carried_BNE], dim=-1)
        if share is None:
            return self._pool(pooled_BND, scores_BN, mask_BN)
        if scores_BN is not None:
            scores_BN = share.gather(scores_BN)
        draws = self.training and "training" in OPERATORS[self.stage.operator].settings
        with share.group.same_draws(x_BND.device) if draws else nullcontext():
            plan = self._pool(pooled_BND.new_empty(*share.mask_BN.shape, 0), scores_BN, share.mask_BN)
        embeddings = share.sum_slots(pooled_BND, plan)
        if scores_BN is not None:  # all ranks go back through the sum of the scores, whether or not anything was chosen
            embeddings = tie_scores(embeddings, scores_BN)
        return plan._replace(embeddings=embeddings)

    def _pool(self, embeddings_BND: Tensor, scores_BN: Tensor | None, mask_BN: Tensor) -> SoftTopK:
        if self.stage.span == 1:
            return self._choose(embeddings_BND, scores_BN, mask_BN, self.stage)

        def choose(scores_BM: Tensor | None, mask_BM: Tensor, spans: PoolingStage) -> SoftTopK:
            return self._choose(embeddings_BND.new_empty(*mask_BM.shape, 0), scores_BM, mask_BM, spans)

        return pool_spans(choose, embeddings_BND, scores_BN, mask_BN, self.stage)

    def _choose(
        self, embeddings_BND: Tensor, scores_BN: Tensor | None, mask_BN: Tensor, stage: PoolingStage
    ) -> SoftTopK:
        # A document without tokens counts as one of one, of which nothing is real.
        k_B = stage.slots_of_each(mask_BN.sum(1).clamp(min=1))
        settings: dict[str, Any] = {"stage": stage, "base": self.base, "training": self.training}
        operator = OPERATORS[stage.operator]
        return operator.pool(
            embeddings_BND,
            scores_BN,
            k_B,
            mask_BN=mask_BN,
            slots=stage.slots(mask_BN.shape[1]),
            **{name: settings[name] for name in operator.settings},
        )

    def _noise(self, keys_B: Tensor | None, num_tokens: int, share: Share | None) -> Tensor | None:
        """(B, N): what is added to the scorer's logits, if anything is."""
        if not self.explores:
            return None
        assert keys_B is not None
        draw = torch.randint(2**62, ()) if self.draw is None else self.draw
        num_tokens = num_tokens if share is None else share.mask_BN.shape[1]
        span = self.stage.span
        noise_BM = self.exploration * gumbel_noise(keys_B, -(-num_tokens // span), self.stage.after_layer, draw)
        noise_BN = noise_BM if span == 1 else spread_spans(noise_BM, span, num_tokens) * span**-0.5
        return noise_BN if share is None else share.own(noise_BN)

    def _read(self, x_BND: Tensor, noise_BN: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) -> what is pooled, and the scores (B, N), if the operator needs any."""
        scorer = self.scorer
        if scorer is not None and not self.pools_normed and noise_BN is None:
            return x_BND, map_in_pieces(lambda part: score(scorer, self._normed(part)), x_BND)
        normed_BND = self._normed(x_BND)  # x itself, where neither the scores nor the pooling want a norm
        scores_BN = None if scorer is None else score(scorer, normed_BND, noise_BN)
        return normed_BND if self.pools_normed else x_BND, scores_BN

    def _normed(self, x_BND: Tensor) -> Tensor:
        return x_BND if self.score_norm is None else self.score_norm(x_BND)


class Poolers(nn.ModuleDict):
    """The poolers of an encoder, by the number of the layer after which each pools, at one of their budgets."""

    def __init__(self, stages: Sequence[PoolingStage], make_pooler: Callable[[PoolingStage], Pooler]) -> None:
        self._stages = tuple(stages)
        schedule = schedule_that_keeps(stages, None)
        super().__init__({str(stage.after_layer): make_pooler(stage) for stage in schedule})

    @property
    def schedule(self) -> tuple[PoolingStage, ...]:
        """The stages at the budget that is kept now."""
        return tuple(cast(Pooler, pooler).stage for pooler in self.values())

    def keep(self, keep: float | None) -> None:
        """Keep this many tokens of each document, or below 1 this share, from now on; None: the largest budget.

        Raises ValueError where the last stage cannot keep that.
        """
        self.follow(schedule_that_keeps(self._stages, keep))

    def follow(self, schedule: Sequence[PoolingStage]) -> None:
        """Pool as `schedule` says from now on; its layers are those of the poolers."""
        for stage in schedule:
            cast(Pooler, self[str(stage.after_layer)]).stage = stage

    def explore(self, draw: int) -> None:
        """Draw the noise of exploration from this number from now on; every step of a run has one of its own."""
        for pooler in self.values():
            pooler.draw = torch.tensor(draw)


def keys_for(
    poolers: Poolers, given: Tensor, layout: Layout, positions_P: Tensor, share: Share | None
) -> Tensor | None:
    """Return `document_keys` of packed ids (P,), where the poolers explore; ValueError for embeddings, which have none.

    None where there is no noise.
    """
    if not any(pooler.explores for pooler in cast(Iterable[Pooler], poolers.values())):
        return None
    if given.is_floating_point():
        raise ValueError(
            "inputs_embeds: exploration_noise is drawn from a document's ids; give input_ids, or set it to 0"
        )
    to_rows = layout.documents.to_rows
    keys_B = document_keys(to_rows(given), to_rows(positions_P), layout.document_mask)
    return keys_B if share is None else share.group.add_up(keys_B)


class PooledTokens(NamedTuple):
    """Packed tokens after a stage."""

    x_PD: Tensor
    layout: Layout
    positions_P: Tensor
    """int64: position in the document of each slot's winner."""
    carried_PE: Tensor | None
    stage: PooledStage
    """What the stage did."""
    share: Share | None
    """Of this rank, where ranks share the documents, before a further stage."""


def pool_packed(
    pooler: Pooler,
    x_PD: Tensor,
    layout: Layout,
    positions_P: Tensor,
    block_size: int | None,
    carried_PE: Tensor | None = None,
    keys_B: Tensor | None = None,
    share: Share | None = None,
    is_last: bool = False,
) -> PooledTokens:
    """Pool packed tokens, and what is carried along with them; `block_size` is that of the layers that follow.

    `is_last`: no further stage will share the documents among the ranks of `share`.
    """
    to_rows, mask_BN = layout.documents.to_rows, layout.document_mask
    carried_BNE = None if carried_PE is None else to_rows(carried_PE)
    # Reentrant checkpointing returns a plain tuple.
    pooled = SoftTopK(*pooler(to_rows(x_PD), mask_BN, carried_BNE, keys_B, share))
    scored = pooler.scorer is not None
    if share is None:
        stage = PooledStage(pooled.groups, pooled.weights.detach().float(), mask_BN, scored)
        lengths = [pooler.stage.slots(length) for length in layout.lengths]
        after = Layout(lengths, block_size, x_PD.device, None if layout.all_real else pooled.mask)
        positions_P = after.documents.to_tokens(to_rows(positions_P).gather(1, pooled.positions))
        pooled_P = after.documents.to_tokens(pooled.embeddings)
    else:
        stage = PooledStage(pooled.groups, pooled.weights.detach().float(), share.mask_BN, scored)
        pooled_P, after, positions_P, share = share.deal(pooled, cast(int, block_size), is_last)
    x, *carried = pooled_P.split(x_PD.shape[-1], dim=-1)
    return PooledTokens(x, after, positions_P, carried[0] if carried else None, stage, share)

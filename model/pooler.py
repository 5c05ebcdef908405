"""One stage of the pooling schedule: score every token, keep the few that matter."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from transpooler.model.architecture import SCORED, PoolingStage
from transpooler.model.config import TranspoolerConfig
from transpooler.model.layers import FinalNorm
from transpooler.model.ops import baselines
from transpooler.model.ops.soft_topk import SoftTopK, soft_topk

SCORE_FLOOR = 1e-5


class Scorer(nn.Linear):
    """Linear(D, 1), sigmoid, + 1e-5, in float32 whatever autocast says: bfloat16 scores would lose the order."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> float32 (B, N) in (0, 1]."""
        # Shapes alone (the meta device) have no autocast, not even one to turn off.
        with nullcontext() if x_BND.is_meta else torch.autocast(x_BND.device.type, enabled=False):
            logits = F.linear(x_BND.float(), self.weight.float(), self.bias.float())
        return logits.squeeze(-1).sigmoid() + SCORE_FLOOR


def closes_stack(config: TranspoolerConfig, stage: PoolingStage) -> bool:
    """Whether the stage pools what the encoder's final norm makes, so that no norm follows."""
    return config.norm == "pre" and config.pooling_norm == "before" and stage.after_layer == config.encoder_layers


class Pooler(GradientCheckpointingLayer):
    """Pools what leaves an encoder layer; a document's result depends on that document alone."""

    def __init__(self, config: TranspoolerConfig, stage: PoolingStage) -> None:
        super().__init__()
        self.stage, self.base = stage, config.pooling_base
        self.scorer = Scorer(config.d_model) if stage.operator in SCORED else None
        self.pools_normed = config.pooling_norm == "before"
        # Between pre-norm layers the residual stream has no fixed scale; the score should not depend on it.
        reads_normed = self.scorer is not None or self.pools_normed
        self.score_norm = FinalNorm(config) if reads_normed and not closes_stack(config, stage) else None

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> SoftTopK:
        """x_BND (B, N, D), mask_BN bool (B, N) -> SoftTopK with S slots, S the longest that a document can need."""
        slots, k_B, rounds = self._lengths(mask_BN)
        normed_BND = x_BND if self.score_norm is None else self.score_norm(x_BND)
        if self.pools_normed:
            x_BND = normed_BND
        if self.scorer is None:
            return self._unscored(x_BND, k_B, slots, mask_BN)
        scores_BN = self.scorer(normed_BND)
        if self.stage.operator == "hard":
            return baselines.hard(x_BND, scores_BN, k_B, mask_BN=mask_BN, slots=slots)
        if self.stage.operator == "iterative_softmax":
            return baselines.iterative_softmax(x_BND, scores_BN, k_B, mask_BN=mask_BN, slots=slots)
        # Not validated: should scores ever be NaN, the loss is too, and training skips that step.
        settings: dict[str, Any] = {"mask_BN": mask_BN, "base": self.base, "validate": False}
        if self.stage.length is None:
            return soft_topk(x_BND, scores_BN, k_B, slots=slots, rounds=rounds, **settings)
        pooled = soft_topk(x_BND, scores_BN, self.stage.length, **settings)
        # Where nothing is to be pooled the scorer has no part in the result. It takes part with zero all the same:
        # ranks whose documents are short must reduce the same gradients as the others.
        return pooled._replace(embeddings=pooled.embeddings + 0 * scores_BN.sum().to(x_BND.dtype))

    def _unscored(self, x_BND: Tensor, k_B: Tensor, slots: int, mask_BN: Tensor) -> SoftTopK:
        if self.stage.operator == "random":
            return baselines.random(x_BND, None, k_B, mask_BN=mask_BN, slots=slots, training=self.training)
        return baselines.strided_mean(x_BND, None, k_B, mask_BN=mask_BN, slots=slots)

    def _lengths(self, mask_BN: Tensor) -> tuple[int, Tensor, int]:
        """Slots for the batch, slots of each document (B,), rounds of halving that suffice."""
        batch, num_tokens = mask_BN.shape
        if self.stage.length is not None:
            slots = min(self.stage.length, num_tokens)
            return slots, torch.full((batch,), slots, device=mask_BN.device), 0
        assert self.stage.ratio is not None  # Architecture.problems
        shrink = round(1 / self.stage.ratio)
        k_B = (mask_BN.sum(1) + shrink - 1) // shrink
        return -(-num_tokens // shrink), k_B.clamp(min=1), int(math.log2(shrink))

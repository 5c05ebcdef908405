"""The table of pooling operators. A new one is a function, a row here and its name in `schedule.OPERATOR_NAMES`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from transpooler.model.ops import baselines
from transpooler.model.ops.schedule import PoolingStage
from transpooler.model.ops.soft_topk import SoftTopK, soft_topk
from transpooler.model.ops.threshold import threshold


class Operator(NamedTuple):
    """One way to pool."""

    pool: Callable[..., SoftTopK]
    """pool(embeddings_BND, scores_BN or None, k_B, *, mask_BN, slots, and what `settings` names)."""
    needs_scores: bool
    """Whether it reads scores; a pooler of the others has no scorer."""
    settings: tuple[str, ...] = ()
    """What else it takes by name: `stage` (PoolingStage), `base` (of the pair softmax), `training` (bool)."""
    flops: Callable[[int, int, int], int] = lambda num_tokens, slots, width: 0
    """flops(num_tokens, slots, width): operations of its matrix products on one document, forward; sums and sorts are
    not counted, nor is the scorer."""


def successive_halving(
    embeddings_BND: Tensor,
    scores_BN: Tensor,
    k_B: Tensor,
    *,
    mask_BN: Tensor,
    slots: int,
    stage: PoolingStage,
    base: float,
) -> SoftTopK:
    """`soft_topk` as a stage needs it.

    Scores are not validated: should they ever be NaN, the loss is too, and training skips that step.
    """
    settings: dict[str, Any] = {"mask_BN": mask_BN, "base": base, "validate": False}
    if not isinstance(stage.length, int):
        rounds = round(-math.log2(stage.single_ratio))
        return soft_topk(embeddings_BND, scores_BN, k_B, slots=slots, rounds=rounds, **settings)
    pooled = soft_topk(embeddings_BND, scores_BN, stage.length, **settings)
    return pooled._replace(embeddings=tie_scores(pooled.embeddings, scores_BN))


def tie_scores(embeddings_BSD: Tensor, scores_BN: Tensor) -> Tensor:
    """The same embeddings, to which the scores contribute zero.

    Where nothing is pooled they do not depend on the scorer otherwise, and ranks whose documents are short must reduce
    the same gradients as the others.
    """
    return embeddings_BSD + 0 * scores_BN.sum().to(embeddings_BSD.dtype)


OPERATORS = {
    "successive_halving": Operator(successive_halving, needs_scores=True, settings=("stage", "base")),
    "threshold": Operator(threshold, needs_scores=True),
    "hard": Operator(baselines.hard, needs_scores=True),
    "random": Operator(baselines.random, needs_scores=False, settings=("training",)),
    "strided": Operator(baselines.strided, needs_scores=False),
    "strided_mean": Operator(baselines.strided_mean, needs_scores=False),
    "weighted_mean": Operator(baselines.weighted_mean, needs_scores=True),
    "iterative_softmax": Operator(
        baselines.iterative_softmax, needs_scores=True, flops=lambda tokens, slots, width: 2 * tokens * slots * width
    ),
}

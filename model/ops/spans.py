"""Pooling by spans: neighbouring tokens are scored, kept and merged together, so that what is kept reads as text.

A language model reads 128 tokens of a paper far better in 8 spans of 16 than one by one (docs/results.md). A document
is cut into spans of g tokens, an operator chooses among them as it would among tokens, and slot g · j + i takes the
i-th tokens of the spans that flow into slot j. What is left over behind the last whole span is kept where all is kept,
and never otherwise, so that lengths alone decide how many slots there are.

B documents, N tokens, M spans, G tokens of a span, S slots.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from transpooler.model.ops.operators import tie_scores
from transpooler.model.ops.schedule import PoolingStage
from transpooler.model.ops.soft_topk import SoftTopK
from transpooler.model.ops.soft_topk.plain import group_sum

LEAST_SCORE = 1e-6


def pool_spans(
    choose: Callable[[Tensor | None, Tensor, PoolingStage], SoftTopK],
    embeddings_BND: Tensor,
    scores_BN: Tensor | None,
    mask_BN: Tensor,
    stage: PoolingStage,
) -> SoftTopK:
    """Pool whole spans; `choose` is given scores (B, M), the mask of spans (B, M) and a stage that counts spans.

    Scores lie in (0, 1], as of `Pooler`; mask_BN bool, real tokens in front. Embeddings are summed as in `soft_topk`.
    """
    span, num_tokens = stage.span, mask_BN.shape[1]
    length_B1 = mask_BN.sum(1, keepdim=True)
    kept_B1 = stage.slots_of_each(length_B1)
    real_BMG = _cut(mask_BN, span)
    mask_BM = real_BMG.all(-1) | ((kept_B1 >= length_B1) & real_BMG.any(-1))
    scores_BM = None if scores_BN is None else _score_spans(scores_BN, mask_BN, span)
    plan = choose(scores_BM, mask_BM, stage.spans)

    slots = stage.slots(num_tokens)
    token_N, slot_S = (torch.arange(number, device=mask_BN.device) for number in (num_tokens, slots))
    groups_BN = spread_spans(plan.groups, span, num_tokens)
    groups_BN = torch.where(mask_BN & (groups_BN >= 0), groups_BN * span + token_N % span, -1)
    weights_BN = spread_spans(plan.weights, span, num_tokens) * mask_BN
    positions_BS = spread_spans(plan.positions, span, slots) * span + slot_S % span
    mask_BS = slot_S < kept_B1
    embeddings = group_sum(embeddings_BND, weights_BN, groups_BN, slots, "auto")
    return SoftTopK(
        embeddings=embeddings if scores_BN is None else tie_scores(embeddings, scores_BN),
        mask=mask_BS,
        scores=spread_spans(plan.scores, span, slots),
        positions=torch.where(mask_BS, positions_BS, 0),
        groups=groups_BN,
        weights=weights_BN,
    )


def _score_spans(scores_BN: Tensor, mask_BN: Tensor, span: int) -> Tensor:
    """The mean of a span's logits, its distance to the document's stretched by √G, through the sigmoid again.

    So spans differ as much as single tokens that know nothing of each other, around the same level. Plain means lie so
    close together that a tournament averages them, and so do sums, whose sigmoid is 1.
    """
    logits_BN = scores_BN.clamp(LEAST_SCORE, 1 - LEAST_SCORE).logit().where(mask_BN, 0)
    level_B1 = logits_BN.sum(1, keepdim=True) / mask_BN.sum(1, keepdim=True).clamp(min=1)
    mean_BM = _cut(logits_BN, span).sum(-1) / _cut(mask_BN, span).sum(-1).clamp(min=1)
    return (level_B1 + (mean_BM - level_B1) * span**0.5).sigmoid().clamp(min=LEAST_SCORE)


def _cut(x_BN: Tensor, span: int) -> Tensor:
    """(B, N) -> (B, M, G), zeros behind the last token."""
    num_tokens = x_BN.shape[1]
    # No remainder: torch's compiler knows none of lengths that change.
    return F.pad(x_BN, (0, -(-num_tokens // span) * span - num_tokens)).unflatten(1, (-1, span))


def spread_spans(x_BM: Tensor, span: int, length: int) -> Tensor:
    """(B, M) of spans -> (B, length) of their tokens, or of the slots that these take."""
    spread = x_BM.repeat_interleave(span, 1)
    # Not sliced: torch's compiler would make one graph where something is cut off, and one where nothing is.
    return F.pad(spread, (0, length - spread.shape[1]))

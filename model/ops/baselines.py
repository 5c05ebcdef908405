"""Pooling operators to compare with, behind the interface of `soft_topk`: each a few lines, none tuned for speed.

hard: top-k by score, gated by the score (its gradient reaches the scorer straight through the choice).
random: k tokens drawn evenly, again at every call in training, always the same ones in evaluation.
strided: the first token of each of k equal runs of the document.
strided_mean: means of equal runs of the document (Funnel-Transformer, arXiv 2006.03236; LCLM, arXiv 2606.09659).
weighted_mean: the same runs, weighted by a softmax of the scorer within each: averaging that can be trained.
iterative_softmax: k softmaxes, each after lowering what the one before chose (Goyal et al. 2017, arXiv 1708.00111).

All take (embeddings_BND, scores_BN, k, *, mask_BN, slots) as `soft_topk` does, keep the document's order, and raise as
it does, though not for the values of scores. random, strided and strided_mean read no scores (None will do).
"""

import torch
from torch import Tensor

from transpooler.model.ops.soft_topk import SoftTopK
from transpooler.model.ops.soft_topk.argument_checks import check_forward_mode, settle_arguments
from transpooler.model.ops.soft_topk.interface import sort_best_first
from transpooler.model.ops.soft_topk.plain import group_sum

TEMPERATURE = 0.1  # of iterative softmax: scores lie in (0, 1), so that 1.0 would average everything


def hard(
    embeddings_BND: Tensor,
    scores_BN: Tensor,
    k: int | Tensor,
    *,
    mask_BN: Tensor | None = None,
    slots: int | None = None,
    keep_order: bool = True,
) -> SoftTopK:
    """The k best tokens unchanged; in the backward pass each counts as score * token."""
    scores_BN, k_B, slots, mask_BN = _settle(embeddings_BND, scores_BN, k, mask_BN, slots)
    result = keep_best(embeddings_BND, scores_BN, scores_BN, scores_BN, k_B, slots, mask_BN)
    return result if keep_order else sort_best_first(result)


def random(
    embeddings_BND: Tensor,
    scores_BN: Tensor | None,
    k: int | Tensor,
    *,
    mask_BN: Tensor | None = None,
    slots: int | None = None,
    training: bool = False,
) -> SoftTopK:
    """k tokens of each document, evenly drawn."""
    scores_BN, k_B, slots, mask_BN = _settle(embeddings_BND, scores_BN, k, mask_BN, slots)
    generator = None if training else torch.Generator(mask_BN.device).manual_seed(0)
    # One row of draws for all documents in evaluation, so that a document's choice does not depend on its batch.
    shape = mask_BN.shape if training else mask_BN.shape[1:]
    draws_BN = torch.rand(shape, device=mask_BN.device, generator=generator).expand(mask_BN.shape)
    ones_BN = torch.ones(mask_BN.shape, device=mask_BN.device, dtype=scores_BN.dtype)
    return keep_best(embeddings_BND, draws_BN, ones_BN, ones_BN, k_B, slots, mask_BN)


def strided(
    embeddings_BND: Tensor,
    scores_BN: Tensor | None,
    k: int | Tensor,
    *,
    mask_BN: Tensor | None = None,
    slots: int | None = None,
) -> SoftTopK:
    """The first token of each of the runs of `strided_mean`."""
    scores_BN, k_B, slots, mask_BN = _settle(embeddings_BND, scores_BN, k, mask_BN, slots)
    run_BN = torch.where(mask_BN, _number_runs(mask_BN, k_B), -1)
    begins_BN = run_BN > torch.cat([torch.full_like(run_BN[:, :1], -1), run_BN.cummax(1).values[:, :-1]], dim=1)
    ones_BN = torch.ones(mask_BN.shape, device=mask_BN.device, dtype=scores_BN.dtype)
    return keep_best(embeddings_BND, begins_BN.to(scores_BN.dtype), ones_BN, ones_BN, k_B, slots, mask_BN)


def strided_mean(
    embeddings_BND: Tensor,
    scores_BN: Tensor | None,
    k: int | Tensor,
    *,
    mask_BN: Tensor | None = None,
    slots: int | None = None,
) -> SoftTopK:
    """The document cut into k runs of as equal length as can be, each replaced by its mean."""
    _, k_B, slots, mask_BN = _settle(embeddings_BND, scores_BN, k, mask_BN, slots)
    wide = torch.promote_types(embeddings_BND.dtype, torch.float32)
    ones = torch.ones(mask_BN.shape, device=mask_BN.device, dtype=wide)
    return _average_runs(embeddings_BND, ones, ones, k_B, mask_BN, slots)


def weighted_mean(
    embeddings_BND: Tensor,
    scores_BN: Tensor,
    k: int | Tensor,
    *,
    mask_BN: Tensor | None = None,
    slots: int | None = None,
) -> SoftTopK:
    """The runs of `strided_mean`, in each of which a token weighs exp(x) / Σ exp(x) with x = logit(score).

    For scores of a sigmoid x is what the scorer gave. A slot's position is that of its heaviest token.
    """
    scores_BN, k_B, slots, mask_BN = _settle(embeddings_BND, scores_BN, k, mask_BN, slots)
    odds_BN = scores_BN.clamp(1e-6, 1 - 1e-6)
    return _average_runs(embeddings_BND, odds_BN / (1 - odds_BN), scores_BN, k_B, mask_BN, slots)


def _number_runs(mask_BN: Tensor, k_B: Tensor) -> Tensor:
    """The run (B, N) of each real token, from 0, where a document is cut into k of as equal length as can be."""
    count_B1, k_B1 = mask_BN.sum(1, keepdim=True), k_B[:, None]
    rank_BN = mask_BN.cumsum(1) - 1
    return torch.where(count_B1 > k_B1, rank_BN * k_B1 // count_B1.clamp(min=1), rank_BN)


def _average_runs(
    embeddings_BND: Tensor, shares_BN: Tensor, scores_BN: Tensor, k_B: Tensor, mask_BN: Tensor, slots: int
) -> SoftTopK:
    """Runs of as equal length as can be, each averaged by its tokens' positive shares."""
    check_forward_mode(embeddings_BND)
    run_BN = _number_runs(mask_BN, k_B)
    groups_BN = torch.where(mask_BN, run_BN, -1)
    # Slot `slots` takes the padding, and is cut off. Its shares are 1, since 0 / 0 would have NaN for a gradient.
    bins_BN = torch.where(mask_BN, run_BN, slots)
    zeros = torch.zeros(len(mask_BN), slots + 1, device=mask_BN.device, dtype=shares_BN.dtype)
    sums = zeros.scatter_add(1, bins_BN, torch.where(mask_BN, shares_BN, 1))
    weights_BN = torch.where(mask_BN, shares_BN / sums.gather(1, bins_BN), 0)
    most = zeros.scatter_reduce(1, bins_BN, weights_BN.detach(), "amax").gather(1, bins_BN)
    mask = sums[:, :slots] > 0
    num_tokens = mask_BN.shape[1]
    token_BN = torch.arange(num_tokens, device=mask_BN.device).expand(mask_BN.shape)
    heaviest = torch.where(weights_BN == most, token_BN, num_tokens)
    firsts = torch.full_like(zeros, num_tokens, dtype=torch.int64).scatter_reduce(1, bins_BN, heaviest, "amin")
    return SoftTopK(
        embeddings=group_sum(embeddings_BND, weights_BN, groups_BN, slots, "auto"),
        mask=mask,
        scores=zeros.scatter_add(1, bins_BN, weights_BN * torch.where(mask_BN, scores_BN, 0))[:, :slots],
        positions=torch.where(mask, firsts[:, :slots], 0),
        groups=groups_BN,
        weights=weights_BN,
    )


def iterative_softmax(
    embeddings_BND: Tensor,
    scores_BN: Tensor,
    k: int | Tensor,
    *,
    mask_BN: Tensor | None = None,
    slots: int | None = None,
) -> SoftTopK:
    """Slot j is the softmax average after the j - 1 before it: O(k N D), and every token may flow into every slot.

    groups and weights name each token's largest share; a slot's position is the token that weighs most in it.
    """
    scores_BN, k_B, slots, mask_BN = _settle(embeddings_BND, scores_BN, k, mask_BN, slots)
    logits = torch.where(mask_BN, scores_BN, -torch.inf) / TEMPERATURE
    logits = torch.where(mask_BN.any(1, keepdim=True), logits, 0)
    shares = []
    for _ in range(slots):
        share = logits.softmax(dim=1)
        shares.append(share)
        logits = logits + torch.log1p(-share.clamp(max=1 - 1e-6))
    weights_BSN = torch.stack(shares, dim=1)
    filled = torch.arange(slots, device=mask_BN.device) < torch.minimum(k_B[:, None], mask_BN.sum(1, keepdim=True))
    positions = weights_BSN.argmax(2)
    order = torch.where(filled, positions, mask_BN.shape[1]).sort(dim=1, stable=True).indices
    weights_BSN = weights_BSN.gather(1, order[..., None].expand_as(weights_BSN))
    positions = positions.gather(1, order)
    weights_BSN = weights_BSN * filled[..., None]
    best = weights_BSN.max(dim=1)
    with torch.autocast(mask_BN.device.type, enabled=False):  # results come in the dtype of the embeddings
        pooled = weights_BSN.to(embeddings_BND.dtype) @ embeddings_BND
    return SoftTopK(
        embeddings=pooled,
        mask=filled,
        scores=(weights_BSN * torch.where(mask_BN, scores_BN, 0)[:, None]).sum(2),
        positions=torch.where(filled, positions, 0),
        groups=torch.where(mask_BN, best.indices, -1),
        weights=torch.where(mask_BN, best.values, 0),
    )


def _settle(embeddings_BND, scores_BN, k, mask_BN, slots) -> tuple[Tensor, Tensor, int, Tensor]:
    """`settle_arguments`, with ones for scores of None."""
    if scores_BN is None:
        scores_BN = torch.ones(embeddings_BND.shape[:2], device=embeddings_BND.device)
    return settle_arguments(embeddings_BND, scores_BN, k, mask_BN, slots)


def _choose(scores_BN: Tensor, k_B: Tensor, slots: int, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, slots) of the k best real tokens, and which slots are filled; ties go to the earlier token."""
    num_tokens = mask_BN.shape[1]
    order = torch.where(mask_BN, scores_BN, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :slots]
    filled = torch.arange(slots, device=mask_BN.device) < torch.minimum(k_B[:, None], mask_BN.sum(1, keepdim=True))
    positions = torch.where(filled, order, num_tokens).sort(dim=1).values
    return torch.where(filled, positions, 0), filled


def keep_best(
    embeddings_BND: Tensor,
    ranking_BN: Tensor,
    gates_BN: Tensor,
    scores_BN: Tensor,
    k_B: Tensor,
    slots: int,
    mask_BN: Tensor,
) -> SoftTopK:
    """The k tokens of each document that are highest in `ranking_BN`, unchanged; what is dropped flows nowhere.

    In the backward pass each counts as gate * token: <e, g> is the gradient of the gate, in float32 at least.
    """
    check_forward_mode(embeddings_BND, scores_BN)
    positions, mask = _choose(ranking_BN.detach(), k_B, slots, mask_BN)
    numbers = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    # Empty slots write to a column of their own.
    groups_BN = torch.full((len(mask_BN), mask_BN.shape[1] + 1), -1, device=mask.device)
    groups_BN = groups_BN.scatter(1, torch.where(mask, positions, mask_BN.shape[1]), numbers)[:, :-1]
    weights_BN = torch.where(groups_BN < 0, 0, 1 + (gates_BN - gates_BN.detach()))
    wide = torch.promote_types(embeddings_BND.dtype, weights_BN.dtype)
    return SoftTopK(
        # A gather, by the sum that the operators share: its backward pass is several times as fast as torch's own.
        embeddings=group_sum(embeddings_BND, weights_BN.to(wide), groups_BN, mask.shape[1], "auto"),
        mask=mask,
        scores=torch.where(mask, scores_BN.gather(1, positions), 0),
        positions=positions,
        groups=groups_BN,
        weights=weights_BN,
    )

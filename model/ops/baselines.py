"""Pooling operators to compare with, behind the interface of `soft_topk`: each a few lines, none tuned for speed.

hard: top-k by score, gated by the score (its gradient reaches the scorer straight through the choice).
random: k tokens drawn evenly, again at every call in training, always the same ones in evaluation.
strided_mean: means of equal runs of the document (Funnel-Transformer, arXiv 2006.03236).
iterative_softmax: k softmaxes, each after lowering what the one before chose (Goyal et al. 2017, arXiv 1708.00111).
"""

import torch
from torch import Tensor

from model.ops.soft_topk import SoftTopK

TEMPERATURE = 0.1  # of iterative softmax: scores lie in (0, 1), so that 1.0 would average everything


def hard(embeddings_BND: Tensor, scores_BN: Tensor, k_B: Tensor, slots: int, mask_BN: Tensor) -> SoftTopK:
    """The k best tokens as they are; in the backward pass they count as score * token."""
    positions, mask = _chosen(scores_BN.detach(), k_B, slots, mask_BN)
    pooled = embeddings_BND.gather(1, positions[..., None].expand(-1, -1, embeddings_BND.shape[-1]))
    scores = scores_BN.gather(1, positions)
    gate = 1 + (scores - scores.detach())
    return _of_tokens(pooled * gate[..., None].to(pooled.dtype), scores, positions, mask, mask_BN)


def random(embeddings_BND: Tensor, k_B: Tensor, slots: int, mask_BN: Tensor, *, training: bool) -> SoftTopK:
    """k tokens of each document, evenly drawn."""
    generator = None if training else torch.Generator(mask_BN.device).manual_seed(0)
    # One row of draws for all documents in evaluation, so that a document's choice does not depend on its batch.
    shape = mask_BN.shape if training else mask_BN.shape[1:]
    draws_BN = torch.rand(shape, device=mask_BN.device, generator=generator).expand(mask_BN.shape)
    positions, mask = _chosen(draws_BN, k_B, slots, mask_BN)
    pooled = embeddings_BND.gather(1, positions[..., None].expand(-1, -1, embeddings_BND.shape[-1]))
    return _of_tokens(pooled, torch.ones(mask.shape, device=mask.device), positions, mask, mask_BN)


def strided_mean(embeddings_BND: Tensor, k_B: Tensor, slots: int, mask_BN: Tensor) -> SoftTopK:
    """The document cut into k runs of as equal length as can be, each replaced by its mean."""
    count_B1, k_B1 = mask_BN.sum(1, keepdim=True), k_B[:, None]
    rank_BN = mask_BN.cumsum(1) - 1
    run_BN = torch.where(count_B1 > k_B1, rank_BN * k_B1 // count_B1.clamp(min=1), rank_BN)
    groups_BN = torch.where(mask_BN, run_BN, -1)
    member = (groups_BN[:, None] == torch.arange(slots, device=mask_BN.device)[:, None]).float()
    sizes = member.sum(2)
    weights_BSN = member / sizes.clamp(min=1)[..., None]
    return SoftTopK(
        embeddings=(weights_BSN.to(embeddings_BND.dtype) @ embeddings_BND),
        mask=sizes > 0,
        scores=(sizes > 0).float(),
        positions=member.argmax(2),
        groups=groups_BN,
        weights=weights_BSN.sum(1),
    )


def iterative_softmax(
    embeddings_BND: Tensor, scores_BN: Tensor, k_B: Tensor, slots: int, mask_BN: Tensor, *, keep_order: bool = True
) -> SoftTopK:
    """Slot j is the softmax average after the j - 1 before it: O(k N D), and every token may flow into every slot."""
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
    if keep_order:
        order = torch.where(filled, positions, mask_BN.shape[1]).sort(dim=1, stable=True).indices
        weights_BSN = weights_BSN.gather(1, order[..., None].expand_as(weights_BSN))
        positions = positions.gather(1, order)
    weights_BSN = weights_BSN * filled[..., None]
    best = weights_BSN.max(dim=1)
    return SoftTopK(
        embeddings=weights_BSN.to(embeddings_BND.dtype) @ embeddings_BND,
        mask=filled,
        scores=(weights_BSN * torch.where(mask_BN, scores_BN, 0)[:, None]).sum(2),
        positions=torch.where(filled, positions, 0),
        groups=torch.where(mask_BN, best.indices, -1),
        weights=torch.where(mask_BN, best.values, 0),
    )


def _chosen(scores_BN: Tensor, k_B: Tensor, slots: int, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, slots) of the k best real tokens in document order, and which slots are filled."""
    num_tokens = mask_BN.shape[1]
    order = torch.where(mask_BN, scores_BN, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :slots]
    filled = torch.arange(slots, device=mask_BN.device) < torch.minimum(k_B[:, None], mask_BN.sum(1, keepdim=True))
    positions = torch.where(filled, order, num_tokens).sort(dim=1).values
    return torch.where(filled, positions, 0), filled


def _of_tokens(pooled: Tensor, scores: Tensor, positions: Tensor, mask: Tensor, mask_BN: Tensor) -> SoftTopK:
    """The result of an operator that keeps single tokens; what it drops flows nowhere."""
    groups_BN = torch.full_like(mask_BN, -1, dtype=torch.int64)
    slots = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    # Empty slots write to a column of their own.
    groups_BN = torch.nn.functional.pad(groups_BN, (0, 1), value=-1)
    groups_BN = groups_BN.scatter(1, torch.where(mask, positions, mask_BN.shape[1]), slots)[:, :-1]
    return SoftTopK(
        embeddings=torch.where(mask[..., None], pooled, 0),
        mask=mask,
        scores=torch.where(mask, scores, 0).float(),
        positions=positions,
        groups=groups_BN,
        weights=(groups_BN >= 0).float(),
    )

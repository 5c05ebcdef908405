"""Successive Halving top-k, step by step as in the paper: slow, obvious. The oracle of tests and benchmarks.

Pietruszka, Borchmann, Graliński: Successive Halving Top-k Operator (arXiv 2010.15552), section 2. One document at a
time, one pair at a time, embeddings averaged in every round. Everything is differentiable by plain autograd.
"""

import math

import torch
from torch import Tensor


def reference_row(
    embeddings_ND: Tensor, scores_N: Tensor, k: int, mask_N: Tensor, base: float, keep_order: bool
) -> tuple[Tensor, Tensor, list[int], list[int], Tensor]:
    """Pool one document.

    Returns the pooled embeddings (m, D) and scores (m,) of the m = min(k, valid tokens) survivors, the position of each
    survivor's winner, and for each input its slot (-1 if masked) and its weight there (N,).
    """
    num_tokens = scores_N.shape[0]
    # A survivor is (winner's position, score, embedding, {input position: weight}); padding never enters.
    survivors = [(i, scores_N[i], embeddings_ND[i], {i: scores_N.new_ones(())}) for i in range(num_tokens) if mask_N[i]]
    while len(survivors) > k:
        # "Any n and k": pad with empty slots to the next k * 2^r.
        size = k * 2 ** math.ceil(math.log2(len(survivors) / k))
        # 1. Sort by score, descending; ties go to the earlier position.
        survivors.sort(key=lambda item: (-item[1].item(), item[0]))
        padded = survivors + [None] * (size - len(survivors))
        # 2. Pair the best with the worst.
        pairs = [(padded[i], padded[size - 1 - i]) for i in range(size // 2)]
        survivors = [_merge(a, c, base) for a, c in pairs]
        # 5. Sort back: survivors in the order of their winners in the document. (Between rounds it changes nothing.)
        survivors.sort(key=lambda item: item[0])
    if not keep_order:
        survivors.sort(key=lambda item: -item[1].item())
    slots, weights_N = [-1] * num_tokens, scores_N.new_zeros(num_tokens)
    for slot, (_, _, _, members) in enumerate(survivors):
        for position, weight in members.items():
            slots[position] = slot
            weights_N = weights_N.index_put((torch.tensor(position, device=weights_N.device),), weight)
    pooled = torch.stack([item[2] for item in survivors]) if survivors else embeddings_ND[:0]
    scores = torch.stack([item[1] for item in survivors]) if survivors else scores_N[:0]
    return pooled, scores, [item[0] for item in survivors], slots, weights_N


def _merge(a, c, base: float):
    """Steps 3 and 4: the pair's weight p = softmax(b^s_a, b^s_c)_a and its convex combination; alone, p = 1."""
    if c is None:
        return a
    p = torch.softmax(torch.stack([base ** a[1], base ** c[1]]), dim=0)[0]
    members = {i: p * w for i, w in a[3].items()} | {i: (1 - p) * w for i, w in c[3].items()}
    return a[0], p * a[1] + (1 - p) * c[1], p * a[2] + (1 - p) * c[2], members


def reference_soft_topk(
    embeddings_BND: Tensor, scores_BN: Tensor, k: int, mask_BN: Tensor, base: float = 20.0, keep_order: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The whole batch, in the fields of `SoftTopK` with m slots.

    m = min(k, N); slots beyond a document's survivors are zero and masked.
    """
    batch, num_tokens, dim = embeddings_BND.shape
    slots = min(k, num_tokens)
    pooled_BKD, scores_BK = embeddings_BND.new_zeros(batch, slots, dim), scores_BN.new_zeros(batch, slots)
    mask_BK = torch.zeros(batch, slots, dtype=torch.bool, device=scores_BN.device)
    positions_BK = torch.zeros(batch, slots, dtype=torch.int64, device=scores_BN.device)
    if batch == 0:
        nothing = positions_BK.new_zeros(0, num_tokens)
        return pooled_BKD, mask_BK, scores_BK, positions_BK, nothing, nothing.to(scores_BN.dtype)
    groups, weights = [], []
    for row in range(batch):
        result = reference_row(embeddings_BND[row], scores_BN[row], k, mask_BN[row], base, keep_order)
        pooled, scores, winners, row_groups, row_weights = result
        count = len(winners)
        pooled_BKD[row, :count], scores_BK[row, :count], mask_BK[row, :count] = pooled, scores, True
        positions_BK[row, :count] = torch.tensor(winners, dtype=torch.int64, device=scores_BN.device)
        groups.append(torch.tensor(row_groups, dtype=torch.int64, device=scores_BN.device))
        weights.append(row_weights)
    return pooled_BKD, mask_BK, scores_BK, positions_BK, torch.stack(groups), torch.stack(weights)

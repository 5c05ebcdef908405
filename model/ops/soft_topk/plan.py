"""The tournament of Successive Halving, on scores alone: which input flows into which slot, and with what weight.

The tournament never looks at embeddings, so its result is a *plan*: a partition of the inputs into groups and one weight
per input, the product of its pair weights on the way up. Cost: one sort of the survivors and a few gathers per round;
memory O(B N). No loop over the batch, no host synchronisation, no shape that depends on data.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """Result of the tournament; S = slots."""

    groups_BN: Tensor
    """int64: the slot into which each input flows, -1 where masked."""
    weights_BN: Tensor
    """float32 (float64 for float64 scores): the input's weight in its slot; sums to 1 in a group, 0 where masked."""
    scores_BS: Tensor
    """Pooled scores, in the dtype of the weights; 0 in empty slots."""
    positions_BS: Tensor
    """int64: the winner's position in the input; 0 in empty slots."""
    mask_BS: Tensor
    """bool: slots that hold something; they come first."""


def num_rounds(num_tokens: int, k: int) -> int:
    """Rounds of halving that take `num_tokens` down to `k`: ceil(log2(n / k)), exact in integers."""
    return max(0, (-(-num_tokens // k) - 1).bit_length())


def tournament(
    scores_BN: Tensor, mask_BN: Tensor, k_B1: Tensor, slots: int, rounds: int, base: float, keep_order: bool
) -> Plan:
    """Play the tournament (arXiv 2010.15552, steps 1-5 of method; differentiable in the scores).

    scores_BN: float32 or float64; mask_BN: bool; k_B1: int64 (B, 1), each document's number of slots, at most `slots`;
    rounds: at least what every document needs (a document that is down to its k stands still).
    """
    batch, num_tokens = scores_BN.shape
    scores = torch.where(mask_BN, scores_BN, 0)  # whatever the padding's scores are, NaN included
    count_B1 = mask_BN.sum(1, keepdim=True)
    # Survivors live in slots 0..count-1, in document order, so that a stable sort gives ties to the earlier position.
    rank_BN, order_BN = _ranks(~mask_BN)
    width = min(num_tokens, slots << rounds)
    positions = order_BN[:, :width]
    scores = scores.gather(1, positions)
    slot_BN, weights_BN = rank_BN, mask_BN.to(scores.dtype)
    for round_ in range(rounds):
        next_width = min(width, slots << (rounds - round_ - 1))
        last = round_ == rounds - 1
        # After its first round a document's survivors fill k * 2^r slots exactly.
        size_B1 = _padded_size(count_B1, k_B1, rounds - round_)
        scores, positions, count_B1, slot_BN, weights_BN = _play_round(
            scores, positions, count_B1, size_B1, slot_BN, weights_BN, next_width, base, keep_order or not last
        )
        width = next_width
    mask_BS = torch.arange(width, device=scores.device) < count_B1
    groups_BN = torch.where(mask_BN, slot_BN, -1)
    return Plan(groups_BN, weights_BN, torch.where(mask_BS, scores, 0), torch.where(mask_BS, positions, 0), mask_BS)


def _play_round(
    scores, positions, count_B1, size_B1, slot_BN, weights_BN, next_width: int, base: float, sort_back: bool
):
    """One round: sort, pair best with worst, merge, sort back; survivors shrink to `next_width` columns."""
    width = scores.shape[1]
    filled = torch.arange(width, device=scores.device) < count_B1
    order = torch.where(filled, scores.detach(), -torch.inf).sort(dim=1, descending=True, stable=True).indices
    rank = _inverse(order)
    # Rank i meets rank size-1-i; an empty partner leaves the weight at 1.
    i = torch.arange(next_width, device=scores.device).expand(scores.shape[0], -1)
    partner = size_B1 - 1 - i
    alone = partner >= count_B1
    sorted_scores = scores.gather(1, order)
    winner, loser = sorted_scores[:, :next_width], sorted_scores.gather(1, partner.clamp(0, width - 1))
    p = torch.where(alone, 1.0, torch.sigmoid(base**winner - base**loser))
    merged = torch.where(alone, winner, p * winner + (1 - p) * loser)
    winners = positions.gather(1, order[:, :next_width])
    new_count = torch.minimum(count_B1, size_B1 // 2)
    # Follow every input to its new slot and weight.
    rank_BN = rank.gather(1, slot_BN.clamp(max=width - 1))
    won_BN = rank_BN < size_B1 // 2
    slot_BN = torch.where(won_BN, rank_BN, size_B1 - 1 - rank_BN).clamp(0, next_width - 1)
    p_BN = p.gather(1, slot_BN)
    weights_BN = weights_BN * torch.where(won_BN, p_BN, 1 - p_BN)
    if sort_back:
        filled = torch.arange(next_width, device=scores.device) < new_count
        far = torch.iinfo(winners.dtype).max
        back = torch.where(filled, winners, far).sort(dim=1, stable=True).indices
        merged, winners = merged.gather(1, back), winners.gather(1, back)
        slot_BN = _inverse(back).gather(1, slot_BN)
    return merged, winners, new_count, slot_BN, weights_BN


def _padded_size(count_B1: Tensor, k_B1: Tensor, rounds: int) -> Tensor:
    """The next k * 2^r that holds `count`; 2 * count, where nobody has a partner, for documents that fit already."""
    size_B1 = k_B1
    for _ in range(rounds):
        size_B1 = torch.where(size_B1 < count_B1, 2 * size_B1, size_B1)
    return torch.where(count_B1 <= k_B1, 2 * count_B1, size_B1)


def _ranks(last_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Stable order that puts flagged columns last: (rank of each column, column at each rank)."""
    order = last_BN.to(torch.uint8).sort(dim=1, stable=True).indices
    return _inverse(order), order


def _inverse(order: Tensor) -> Tensor:
    """Inverse of the permutation in each row."""
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks)

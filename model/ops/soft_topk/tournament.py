"""The tournament of Successive Halving, on scores alone: which input flows into which slot, and with what weight.

The tournament never looks at embeddings, so its result is a *plan*: a partition of the inputs into groups and one
weight per input, the product of its pair weights on the way up. Cost: one sort of the survivors and a few gathers per
round; memory O(B N). There is no loop over the batch, no host synchronisation, no shape that depends on data. The
backward pass plays the tournament again instead of keeping its rounds.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def num_rounds(num_tokens: int, k: int) -> int:
    """Rounds of halving that take `num_tokens` down to `k`: ceil(log2(n / k)), exact in integers."""
    rounds = 0
    while k << rounds < num_tokens:  # comparisons alone: compiled code then serves all lengths with as many rounds
        rounds += 1
    return rounds


def front_order(mask_BN: Tensor) -> Tensor:
    """int64 (B, N): columns of each row with its real tokens first, in order."""
    return (~mask_BN).to(torch.uint8).sort(dim=1, stable=True).indices


class _Round(NamedTuple):
    """What the backward pass needs of one round; V = survivors before it, W = after it."""

    rank_BV: Tensor
    """Rank of each survivor by score."""
    order_BW: Tensor
    """Survivor at each of the first W ranks: the winners."""
    back_BW: Tensor
    """Sort back: which merged item stands at each place."""
    partner_BW: Tensor
    """Rank that meets rank i, within bounds; meaningless where alone."""
    alone_BW: Tensor
    winner_BW: Tensor
    loser_BW: Tensor
    p_BW: Tensor
    slot_BN: Tensor
    """Merged item (before sorting back) of each input."""
    won_BN: Tensor
    weights_BN: Tensor
    """Weights before the round."""


def play_tournament(
    scores_BN: Tensor, mask_BN: Tensor, k_B1: Tensor, slots: int, rounds: int, base: float, tape: list | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Play the tournament (arXiv 2010.15552, section 2); returns (weights, pooled scores, groups, positions, mask).

    scores_BN: float32 or float64; mask_BN: bool; k_B1: int64 (B, 1), each document's number of slots, at most `slots`;
    rounds: at least what every document needs (a document that is down to its k stays as it is); tape: a list
    that takes each `_Round`, for the backward pass. Returned are the fields of `interface.SoftTopK` without embeddings.
    """
    num_tokens = scores_BN.shape[1]
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
        # After its first round a document's survivors fill k * 2^r slots exactly.
        size_B1 = _padded_size(count_B1, k_B1, rounds - round_)
        played = _pair_up(scores, count_B1, size_B1, slot_BN, weights_BN, next_width, base)
        scores, slot_BN, weights_BN = _merge_pairs(played)
        positions = positions.gather(1, played.order_BW.gather(1, played.back_BW))
        count_B1 = torch.minimum(count_B1, size_B1 // 2)
        if tape is not None:
            tape.append(played)
        width = next_width
    mask_BS = torch.arange(width, device=scores.device) < count_B1
    groups_BN = torch.where(mask_BN, slot_BN, -1)
    return weights_BN, torch.where(mask_BS, scores, 0), groups_BN, torch.where(mask_BS, positions, 0), mask_BS


def tournament_backward(
    grad_weights_BN, grad_scores_BS, scores_BN, mask_BN, k_B1, slots: int, rounds: int, base: float
) -> Tensor:
    """Gradient of the scores, (B, N): the chain rule through the rounds, last round first; exactly 0 where masked."""
    tape: list[_Round] = []
    *_, mask_BS = play_tournament(scores_BN, mask_BN, k_B1, slots, rounds, base, tape)
    grad_survivors = torch.where(mask_BS, grad_scores_BS, 0)
    grad_weights = torch.where(mask_BN, grad_weights_BN, 0)
    for round_ in reversed(tape):
        grad_survivors, grad_weights = _round_backward(round_, grad_survivors, grad_weights, base)
    rank_BN, _ = _ranks(~mask_BN)
    grad_BN = grad_survivors.gather(1, rank_BN.clamp(max=grad_survivors.shape[1] - 1))
    return torch.where(mask_BN, grad_BN, 0)


def _pair_up(scores, count_B1, size_B1, slot_BN, weights_BN, next_width: int, base: float) -> _Round:
    """Steps 1-3: sort, pair the best with the worst, weigh; rank i meets rank size-1-i."""
    width = scores.shape[1]
    filled = torch.arange(width, device=scores.device) < count_B1
    order = torch.where(filled, scores, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    rank = _invert(order)
    partner = size_B1 - 1 - torch.arange(next_width, device=scores.device)
    alone = partner >= count_B1  # the partner is an empty slot
    partner = partner.clamp(0, width - 1)
    sorted_scores = scores.gather(1, order)
    winner, loser = sorted_scores[:, :next_width], sorted_scores.gather(1, partner)
    p = torch.where(alone, 1.0, torch.sigmoid(base**winner - base**loser))
    rank_BN = rank.gather(1, slot_BN.clamp(max=width - 1))
    won_BN = rank_BN < size_B1 // 2
    slot_BN = torch.where(won_BN, rank_BN, size_B1 - 1 - rank_BN).clamp(0, next_width - 1)
    # Survivors stand in document order, empty slots last: sorting back is sorting the winners' old places.
    winners = torch.where(torch.arange(next_width, device=scores.device) < size_B1 // 2, order[:, :next_width], width)
    back = winners.sort(dim=1, stable=True).indices
    return _Round(rank, order[:, :next_width], back, partner, alone, winner, loser, p, slot_BN, won_BN, weights_BN)


def _merge_pairs(played: _Round) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 4 and 5: merged scores in document order, and each input's new slot and weight."""
    p, winner, slot_BN = played.p_BW, played.winner_BW, played.slot_BN
    merged = torch.where(played.alone_BW, winner, p * winner + (1 - p) * played.loser_BW)
    weights_BN = played.weights_BN * _shares(played)
    slot_BN = _invert(played.back_BW).gather(1, slot_BN)
    return merged.gather(1, played.back_BW), slot_BN, weights_BN


def _shares(played: _Round) -> Tensor:
    """Each input's factor of this round, p or 1 - p of its pair, (B, N)."""
    p_BN = played.p_BW.gather(1, played.slot_BN)
    return torch.where(played.won_BN, p_BN, 1 - p_BN)


def _round_backward(played: _Round, grad_merged: Tensor, grad_weights: Tensor, base: float) -> tuple[Tensor, Tensor]:
    """Gradients of a round's inputs (survivors' scores, weights) from those of its outputs."""
    grad_merged = grad_merged.gather(1, _invert(played.back_BW))
    p, winner, loser, alone = played.p_BW, played.winner_BW, played.loser_BW, played.alone_BW
    # w' = w f, with f = p for the winner's inputs and 1 - p for the loser's.
    grad_shares = grad_weights * played.weights_BN
    grad_p = p.new_zeros(p.shape).scatter_add_(1, played.slot_BN, torch.where(played.won_BN, grad_shares, -grad_shares))
    grad_p = grad_p + grad_merged * (winner - loser)
    # p = sigmoid(b^winner - b^loser)
    grad_difference = grad_p * p * (1 - p) * math.log(base)
    grad_winner = torch.where(alone, grad_merged, grad_merged * p + grad_difference * base**winner)
    grad_loser = torch.where(alone, 0, grad_merged * (1 - p) - grad_difference * base**loser)
    grad_sorted = grad_winner.new_zeros(played.rank_BV.shape)
    grad_sorted[:, : grad_winner.shape[1]] = grad_winner
    grad_sorted.scatter_add_(1, played.partner_BW, grad_loser)
    return grad_sorted.gather(1, played.rank_BV), grad_weights * _shares(played)


def _padded_size(count_B1: Tensor, k_B1: Tensor, rounds: int) -> Tensor:
    """The next k * 2^r that holds `count`; 2 * count, where nobody has a partner, for documents that fit already."""
    size_B1 = k_B1
    for _ in range(rounds):
        size_B1 = torch.where(size_B1 < count_B1, 2 * size_B1, size_B1)
    return torch.where(count_B1 <= k_B1, 2 * count_B1, size_B1)


def _ranks(last_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Stable order that puts flagged columns last: (rank of each column, column at each rank)."""
    order = last_BN.to(torch.uint8).sort(dim=1, stable=True).indices
    return _invert(order), order


def _invert(order: Tensor) -> Tensor:
    """Inverse of the permutation in each row."""
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return order.new_empty(order.shape).scatter_(1, order, ranks)

"""Triton kernels for CUDA, forward and backward; same contracts as `torch_backend`.

Tournament: one program plays one document's tournament, all rounds, in one launch. It sorts on chip (64-bit keys:
score, then position, so that ties go to the earlier token); what later steps look up by index goes through scratch
memory that stays in the L2 cache. Costs O(N) scratch a document, no host synchronisation, no atomics: deterministic.
Documents of more than MAX_TOKENS, and float64, are left to `torch_backend`. The group sum is in `triton_group_sum`.

A level is what is left after so many rounds, in document order; level 0 are the tokens. All levels of a document lie
one after the other in an array of T entries.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from transpooler.model.ops.soft_topk import torch_backend
from transpooler.model.ops.soft_topk.triton_group_sum import MAX_TOKENS, group_sum, group_sum_backward, num_warps

__all__ = ["group_sum", "group_sum_backward", "num_warps", "runs_on", "tournament", "tournament_backward"]
ABSENT = tl.constexpr(2**63 - 1)
INT_ARRAYS = tl.constexpr(6)
FLOAT_ARRAYS = tl.constexpr(5)


def runs_on(device: torch.device) -> bool:
    """CUDA tensors; CPU tensors under Triton's interpreter (TRITON_INTERPRET=1)."""
    return device.type == ("cpu" if triton.knobs.runtime.interpret else "cuda")


@triton.jit
def _best_first(scores, present, index):
    """Index of the entries, best score first, ties in their order, absent ones last."""
    scores = tl.where(scores == 0, 0.0, scores)  # -0 equals 0
    bits = scores.to(tl.int32, bitcast=True)
    ascending = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = ((~ascending).to(tl.int64) << 32) | index.to(tl.int64)
    return tl.sort(tl.where(present, keys, ABSENT)).to(tl.int32)


@triton.jit
def _play_round(
    scores_ptr, position_ptr, parent_ptr, rival_ptr, share_ptr, order_ptr, rank_ptr,
    present, count, size, log2_base, capacity, BLOCK: tl.constexpr,
):  # fmt: skip
    """Steps 1-5 on one level (arXiv 2010.15552, section 2); returns the number of survivors.

    Every entry learns its parent (entry of the next level, times 2, plus 1 for the winner), its rival (or -1) and its
    share of the parent.
    """
    v = tl.arange(0, BLOCK)
    scores = tl.load(scores_ptr + v, mask=present, other=0.0)
    order = _best_first(scores, present, v)
    tl.store(order_ptr + v, order, mask=v < count)
    tl.store(rank_ptr + order, v, mask=v < count)
    tl.debug_barrier()
    rank = tl.load(rank_ptr + v, mask=present, other=0)
    won = present & (rank < size // 2)
    parent = tl.cumsum(won.to(tl.int32), 0) - 1
    paired = won & (size - 1 - rank < count)
    rival = tl.load(order_ptr + (size - 1 - rank), mask=paired, other=0)
    rival_score = tl.load(scores_ptr + rival, mask=paired, other=0.0)
    # p = sigmoid(b^a - b^c)
    p = 1 / (1 + tl.exp(tl.exp2(rival_score * log2_base) - tl.exp2(scores * log2_base)))
    p = tl.where(paired, p, 1.0)
    merged = tl.where(paired, p * scores + (1 - p) * rival_score, scores)
    tl.store(scores_ptr + capacity + parent, merged, mask=won)
    tl.store(position_ptr + capacity + parent, tl.load(position_ptr + v, mask=won, other=0), mask=won)
    tl.store(parent_ptr + v, 2 * parent + 1, mask=won)
    tl.store(share_ptr + v, p, mask=won)
    tl.store(rival_ptr + v, tl.where(paired, rival, -1), mask=won)
    tl.store(parent_ptr + rival, 2 * parent, mask=paired)
    tl.store(share_ptr + rival, 1 - p, mask=paired)
    tl.store(rival_ptr + rival, v, mask=paired)
    tl.debug_barrier()
    return tl.minimum(count, size // 2)


@triton.jit
def _capacity(num_tokens, slots, ROUNDS: tl.constexpr, r: tl.constexpr):
    """Upper bound of the number of entries of level r."""
    return num_tokens if r == 0 else tl.minimum(num_tokens, slots << (ROUNDS - r))


@triton.jit
def _play(
    scores_ptr, mask_ptr, k, ints, floats, num_tokens, slots, log2_base, T,
    ROUNDS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """All rounds of one document, then each entry's slot and weight, from the last level down to the tokens.

    Lengths are run-time values: only their next powers of two, BLOCKS, make Triton compile anew.
    """
    position, parent, rival, slot, order, rank = ints, ints + T, ints + 2 * T, ints + 3 * T, ints + 4 * T, ints + 5 * T
    score, share, weight = floats, floats + T, floats + 2 * T
    v = tl.arange(0, BLOCKS[0])
    inside = v < num_tokens
    present = tl.load(mask_ptr + v, mask=inside, other=0) != 0
    tl.store(score + v, tl.load(scores_ptr + v, mask=present, other=0.0), mask=inside)
    tl.store(position + v, v, mask=inside)
    count = tl.sum(present.to(tl.int32), 0)
    tl.debug_barrier()
    at = 0
    for r in tl.static_range(ROUNDS):
        # "Any n and k": the next k * 2^r that holds `count`. Documents with at most k survivors have no more pairs.
        size = k
        for _ in tl.static_range(ROUNDS - r):
            size = tl.where(size < count, 2 * size, size)
        size = tl.where(count <= k, 2 * count, size)
        capacity = _capacity(num_tokens, slots, ROUNDS, r)
        entry = tl.arange(0, BLOCKS[r])
        present_now = present if r == 0 else entry < count
        count = _play_round(
            score + at, position + at, parent + at, rival + at, share + at, order, rank,
            present_now, count, size, log2_base, capacity, BLOCKS[r],
        )  # fmt: skip
        at += capacity
    survivor = tl.arange(0, BLOCKS[ROUNDS])
    filled = survivor < count
    tl.store(slot + at + survivor, survivor, mask=filled)
    tl.store(weight + at + survivor, 1.0, mask=filled)
    tl.debug_barrier()
    for r in tl.static_range(ROUNDS - 1, -1, -1):
        capacity = _capacity(num_tokens, slots, ROUNDS, r)
        entry = at - capacity + tl.arange(0, BLOCKS[r])
        above = tl.load(parent + entry, mask=entry < at, other=-1)
        real = above >= 0
        above = at + (above >> 1)
        tl.store(slot + entry, tl.load(slot + above, mask=real, other=0), mask=real)
        shares = tl.load(share + entry, mask=real, other=0.0)
        tl.store(weight + entry, shares * tl.load(weight + above, mask=real, other=0.0), mask=real)
        tl.debug_barrier()
        at -= capacity
    return count


@triton.jit
def _tournament_kernel(
    scores_ptr, mask_ptr, k_ptr, ints_ptr, floats_ptr, weights_ptr, pooled_ptr, groups_ptr, positions_ptr, filled_ptr,
    num_tokens, slots, width, log2_base, T,
    ROUNDS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """`play_tournament` of document program_id(0). Outputs were zeroed (groups: -1) by the caller."""
    row = tl.program_id(0).to(tl.int64)
    ints, floats = ints_ptr + row * INT_ARRAYS * T, floats_ptr + row * FLOAT_ARRAYS * T
    scores_ptr += row * num_tokens
    mask_ptr += row * num_tokens
    k = tl.load(k_ptr + row).to(tl.int32)
    count = _play(scores_ptr, mask_ptr, k, ints, floats, num_tokens, slots, log2_base, T, ROUNDS, BLOCKS)
    v = tl.arange(0, BLOCKS[0])
    present = tl.load(mask_ptr + v, mask=v < num_tokens, other=0) != 0
    tl.store(weights_ptr + row * num_tokens + v, tl.load(floats + 2 * T + v, mask=present, other=0.0), mask=present)
    group = tl.load(ints + 3 * T + v, mask=present, other=0)
    tl.store(groups_ptr + row * num_tokens + v, group.to(tl.int64), mask=present)
    survivor = tl.arange(0, BLOCKS[ROUNDS])
    filled = survivor < count
    last = T - _capacity(num_tokens, slots, ROUNDS, ROUNDS) + survivor
    place = row * width + survivor
    tl.store(pooled_ptr + place, tl.load(floats + last, mask=filled, other=0.0), mask=filled)
    tl.store(positions_ptr + place, tl.load(ints + last, mask=filled, other=0).to(tl.int64), mask=filled)
    tl.store(filled_ptr + place, filled, mask=filled)


@triton.jit
def _send_gradients_down(
    ints, floats, at, num_tokens, slots, log2_base, log_base, T, ROUNDS: tl.constexpr, BLOCKS: tl.constexpr
):
    """Gradients of the scores, from the last level (which begins at `at`) down to the tokens.

    With
        above[m] = product of m's shares in later rounds,
        below[v] = sum over v's tokens of dL/dw_i times their shares so far,
    a pair's p gets dL/dp = above[m] (below[winner] - below[loser]) + dL/ds_m (s_winner - s_loser).
    """
    parent, rival = ints + T, ints + 2 * T
    score, share, above, below, grad = floats, floats + T, floats + 2 * T, floats + 3 * T, floats + 4 * T
    for r in tl.static_range(ROUNDS - 1, -1, -1):
        above_at = at
        at = above_at - _capacity(num_tokens, slots, ROUNDS, r)
        entry = at + tl.arange(0, BLOCKS[r])
        up = tl.load(parent + entry, mask=entry < above_at, other=-1)
        real = up >= 0
        sign = tl.where(up % 2 == 1, 1.0, -1.0)
        up = above_at + (up >> 1)
        other = tl.load(rival + entry, mask=real, other=-1)
        paired = real & (other >= 0)
        other = at + other
        mine = tl.load(score + entry, mask=real, other=0.0)
        theirs = tl.load(score + other, mask=paired, other=0.0)
        below_mine = tl.load(below + entry, mask=real, other=0.0)
        below_theirs = tl.load(below + other, mask=paired, other=0.0)
        shares = tl.load(share + entry, mask=real, other=0.0)
        grad_up = tl.load(grad + up, mask=real, other=0.0)
        grad_p = sign * (tl.load(above + up, mask=real, other=0.0) * (below_mine - below_theirs))
        grad_p += sign * grad_up * (mine - theirs)
        through_p = sign * grad_p * shares * (1 - shares) * log_base * tl.exp2(mine * log2_base)
        tl.store(grad + entry, grad_up * shares + tl.where(paired, through_p, 0.0), mask=real)
        tl.debug_barrier()


@triton.jit
def _tournament_backward_kernel(
    grad_weights_ptr, grad_pooled_ptr, scores_ptr, mask_ptr, k_ptr, ints_ptr, floats_ptr, grad_ptr,
    num_tokens, slots, width, log2_base, log_base, T,
    ROUNDS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Plays again, then the chain rule through the rounds: `below` from the tokens up, the gradients down."""
    row = tl.program_id(0).to(tl.int64)
    ints, floats = ints_ptr + row * INT_ARRAYS * T, floats_ptr + row * FLOAT_ARRAYS * T
    mask_ptr += row * num_tokens
    k = tl.load(k_ptr + row).to(tl.int32)
    count = _play(
        scores_ptr + row * num_tokens, mask_ptr, k, ints, floats, num_tokens, slots, log2_base, T,
        ROUNDS, BLOCKS,
    )  # fmt: skip
    parent, rival = ints + T, ints + 2 * T
    share, below, grad = floats + T, floats + 3 * T, floats + 4 * T
    v = tl.arange(0, BLOCKS[0])
    present = tl.load(mask_ptr + v, mask=v < num_tokens, other=0) != 0
    tl.store(below + v, tl.load(grad_weights_ptr + row * num_tokens + v, mask=present, other=0.0), mask=present)
    tl.debug_barrier()
    at = 0
    for r in tl.static_range(ROUNDS):
        above_at = at + _capacity(num_tokens, slots, ROUNDS, r)
        entry = at + tl.arange(0, BLOCKS[r])
        up = tl.load(parent + entry, mask=entry < above_at, other=-1)
        won = (up >= 0) & (up % 2 == 1)
        other = tl.load(rival + entry, mask=won, other=-1)
        p = tl.load(share + entry, mask=won, other=0.0)
        mine = tl.load(below + entry, mask=won, other=0.0)
        theirs = tl.load(below + at + other, mask=won & (other >= 0), other=0.0)
        tl.store(below + above_at + (up >> 1), p * mine + (1 - p) * theirs, mask=won)
        tl.debug_barrier()
        at = above_at
    survivor = tl.arange(0, BLOCKS[ROUNDS])
    filled = survivor < count
    arriving = tl.load(grad_pooled_ptr + row * width + survivor, mask=filled, other=0.0)
    tl.store(grad + at + survivor, arriving, mask=filled)
    tl.debug_barrier()
    _send_gradients_down(ints, floats, at, num_tokens, slots, log2_base, log_base, T, ROUNDS, BLOCKS)
    tl.store(grad_ptr + row * num_tokens + v, tl.load(grad + v, mask=present, other=0.0), mask=present)


def tournament(scores_BN, mask_BN, k_B1, slots: int, rounds: int, base: float) -> tuple[Tensor, ...]:
    """(weights, pooled scores, groups, positions, mask)."""
    batch, num_tokens = scores_BN.shape
    if not 0 < num_tokens <= MAX_TOKENS or rounds == 0:
        return torch_backend.tournament(scores_BN, mask_BN, k_B1, slots, rounds, base)
    width = min(slots, num_tokens)
    weights, pooled = scores_BN.new_zeros(scores_BN.shape), scores_BN.new_zeros(batch, width)
    groups = scores_BN.new_full(scores_BN.shape, -1, dtype=torch.int64)
    positions = pooled.new_zeros(pooled.shape, dtype=torch.int64)
    filled = pooled.new_zeros(pooled.shape, dtype=torch.bool)
    levels, arguments = _allocate_levels(scores_BN, slots, rounds)
    _tournament_kernel[(batch,)](
        scores_BN.contiguous(), mask_BN.contiguous(), k_B1.contiguous(), *levels, weights, pooled, groups, positions,
        filled, num_tokens, slots, width, math.log2(base), levels[0].shape[2], **arguments,
    )  # fmt: skip
    return weights, pooled, groups, positions, filled


def tournament_backward(
    grad_weights_BN, grad_scores_BS, scores_BN, mask_BN, k_B1, slots: int, rounds: int, base: float
) -> Tensor:
    """Gradient of the scores."""
    batch, num_tokens = scores_BN.shape
    if not 0 < num_tokens <= MAX_TOKENS or rounds == 0:
        return torch_backend.tournament_backward(
            grad_weights_BN, grad_scores_BS, scores_BN, mask_BN, k_B1, slots, rounds, base
        )
    grad = scores_BN.new_zeros(scores_BN.shape)
    levels, arguments = _allocate_levels(scores_BN, slots, rounds)
    _tournament_backward_kernel[(batch,)](
        grad_weights_BN.contiguous(), grad_scores_BS.contiguous(), scores_BN.contiguous(), mask_BN.contiguous(),
        k_B1.contiguous(), *levels, grad, num_tokens, slots, min(slots, num_tokens), math.log2(base),
        math.log(base), levels[0].shape[2], **arguments,
    )  # fmt: skip
    return grad


def level_blocks(num_tokens: int, slots: int, rounds: int) -> tuple[int, ...]:
    """The power of two that holds each level."""
    return tuple(triton.next_power_of_2(size) for size in _capacities(num_tokens, slots, rounds))


def _capacities(num_tokens: int, slots: int, rounds: int) -> list[int]:
    return [num_tokens, *(min(num_tokens, slots << (rounds - r)) for r in range(1, rounds + 1))]


def _allocate_levels(scores_BN: Tensor, slots: int, rounds: int) -> tuple[tuple[Tensor, Tensor], dict]:
    """Scratch for all levels, and the kernels' compile-time arguments."""
    batch, num_tokens = scores_BN.shape
    blocks, total = level_blocks(num_tokens, slots, rounds), sum(_capacities(num_tokens, slots, rounds))
    ints = torch.full((batch, INT_ARRAYS.value, total), -1, dtype=torch.int32, device=scores_BN.device)
    floats = scores_BN.new_empty((batch, FLOAT_ARRAYS.value, total))
    arguments = {"ROUNDS": rounds, "BLOCKS": blocks, "num_warps": num_warps(blocks[0])}
    return (ints, floats), arguments

"""Triton kernels of the group sum: embeddings are read once, forward and backward. Deterministic: no atomics.

members: each document's tokens by slot, and where each slot begins and ends; one program a document sorts on chip.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_TOKENS = 16384
BLOCK_D = 256
MEMBERS_AT_ONCE = 8
TOKENS_AT_ONCE = 4


@triton.jit
def _members_kernel(groups_ptr, members_ptr, starts_ptr, ends_ptr, num_tokens, slots, BLOCK: tl.constexpr):
    """starts and ends were zeroed by the caller: an empty slot has no members."""
    row = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK)
    group = tl.load(groups_ptr + row * num_tokens + v, mask=v < num_tokens, other=-1).to(tl.int32)
    group = tl.where(group < 0, slots, group)
    ordered = tl.sort(group * BLOCK + v)  # below 2^31: slots <= MAX_TOKENS, BLOCK <= MAX_TOKENS
    slot = ordered // BLOCK
    members_ptr += row * BLOCK
    tl.store(members_ptr + v, ordered)
    tl.debug_barrier()
    before = tl.load(members_ptr + v - 1, mask=v > 0, other=-1) // BLOCK
    after = tl.load(members_ptr + v + 1, mask=v < BLOCK - 1, other=slots * BLOCK) // BLOCK
    real = slot < slots
    tl.store(starts_ptr + row * slots + slot, v, mask=real & ((slot != before) | (v == 0)))
    tl.store(ends_ptr + row * slots + slot, v + 1, mask=real & ((slot != after) | (v == BLOCK - 1)))
    tl.debug_barrier()
    tl.store(members_ptr + v, ordered % BLOCK)


@triton.jit
def _group_sum_kernel(
    embeddings_ptr, weights_ptr, members_ptr, starts_ptr, ends_ptr, out_ptr, num_tokens, slots, dim,
    BLOCK: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[row, slot, columns] = sum of w_i e_i[columns] over the slot's members."""
    place = tl.program_id(0)
    row = place // slots
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start, end = tl.load(starts_ptr + place), tl.load(ends_ptr + place)
    total = tl.zeros((BLOCK_D,), dtype=weights_ptr.dtype.element_ty)
    for first in range(start, end, MEMBERS):
        at = first + tl.arange(0, MEMBERS)
        token = tl.load(members_ptr + row * BLOCK + at, mask=at < end, other=0)
        w = tl.load(weights_ptr + row * num_tokens + token, mask=at < end, other=0.0)
        rows = (row * num_tokens + token).to(tl.int64) * dim
        inside = (at < end)[:, None] & (columns < dim)[None, :]
        e = tl.load(embeddings_ptr + rows[:, None] + columns[None, :], mask=inside, other=0.0)
        total += tl.sum(w[:, None] * e.to(total.dtype), 0)
    tl.store(out_ptr + place.to(tl.int64) * dim + columns, total.to(out_ptr.dtype.element_ty), mask=columns < dim)


@triton.jit
def _group_sum_backward_kernel(
    grad_ptr, embeddings_ptr, weights_ptr, groups_ptr, grad_embeddings_ptr, grad_weights_ptr,
    num_tokens, slots, dim, total_tokens, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """de_i = w_i g_j and dw_i = <e_i, g_j>, j the slot of token i; zero where there is none."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = token < total_tokens
    slot = tl.load(groups_ptr + token, mask=inside, other=-1)
    real = slot >= 0
    w = tl.load(weights_ptr + token, mask=real, other=0.0)
    rows = token.to(tl.int64)[:, None] * dim
    grad_rows = ((token // num_tokens) * slots + slot).to(tl.int64)[:, None] * dim
    product = tl.zeros((TOKENS,), dtype=w.dtype)
    for first in range(0, dim, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)[None, :]
        read = real[:, None] & (columns < dim)
        g = tl.load(grad_ptr + grad_rows + columns, mask=read, other=0.0).to(w.dtype)
        e = tl.load(embeddings_ptr + rows + columns, mask=read, other=0.0).to(w.dtype)
        product += tl.sum(g * e, 1)
        de = (w[:, None] * g).to(grad_embeddings_ptr.dtype.element_ty)
        tl.store(grad_embeddings_ptr + rows + columns, de, mask=inside[:, None] & (columns < dim))
    tl.store(grad_weights_ptr + token, product, mask=inside)


def group_sum(embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor, slots: int) -> Tensor:
    """out_j = sum of w_i e_i over the inputs i of group j."""
    batch, num_tokens, dim = embeddings_BND.shape
    out = embeddings_BND.new_empty(batch, slots, dim)
    if not out.numel():
        return out
    members, starts, ends = _list_members(groups_BN.contiguous(), slots)
    _group_sum_kernel[(batch * slots, triton.cdiv(dim, BLOCK_D))](
        embeddings_BND.contiguous(), weights_BN.contiguous(), members, starts, ends, out, num_tokens, slots, dim,
        BLOCK=members.shape[1], MEMBERS=MEMBERS_AT_ONCE, BLOCK_D=BLOCK_D,
    )  # fmt: skip
    return out


def group_sum_backward(
    grad_BSD: Tensor, embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """de_i = w_i g_group(i) and dw_i = <e_i, g_group(i)>."""
    batch, num_tokens, dim = embeddings_BND.shape
    grad_embeddings = embeddings_BND.new_empty(embeddings_BND.shape)
    grad_weights = weights_BN.new_empty(weights_BN.shape)
    if grad_embeddings.numel():
        _group_sum_backward_kernel[(triton.cdiv(batch * num_tokens, TOKENS_AT_ONCE),)](
            grad_BSD.contiguous(), embeddings_BND.contiguous(), weights_BN.contiguous(), groups_BN.contiguous(),
            grad_embeddings, grad_weights, num_tokens, grad_BSD.shape[1], dim, batch * num_tokens,
            TOKENS=TOKENS_AT_ONCE, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    return grad_embeddings, grad_weights


def num_warps(block: int) -> int:
    """About eight entries a thread."""
    return min(32, max(4, block // 256))


def _list_members(groups_BN: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """int32: tokens by slot (B, at least N), first and one past the last of each slot (B, slots)."""
    batch, num_tokens = groups_BN.shape
    starts, ends = torch.zeros(2, batch, slots, dtype=torch.int32, device=groups_BN.device)
    block = max(16, triton.next_power_of_2(num_tokens))
    if block <= MAX_TOKENS:
        members = torch.empty(batch, block, dtype=torch.int32, device=groups_BN.device)
        _members_kernel[(batch,)](
            groups_BN, members, starts, ends, num_tokens, slots, BLOCK=block, num_warps=num_warps(block)
        )
        return members, starts, ends
    ordered, members = torch.where(groups_BN < 0, slots, groups_BN).sort(dim=1, stable=True)
    each = torch.arange(slots, device=groups_BN.device).expand(batch, slots).contiguous()
    starts, ends = (torch.searchsorted(ordered, each, right=right).int() for right in (False, True))
    return members.int(), starts, ends

"""The two operators behind soft_topk, registered with torch.library: opaque, deterministic, cheap to save for.

`transpooler::tournament` turns scores into a plan; `transpooler::group_sum` reads the embeddings once. autograd saves
the embeddings and O(N) numbers a document, nothing else.
"""

import torch
from torch import Tensor

from model.ops.soft_topk.plan import tournament, tournament_backward


@torch.library.custom_op("transpooler::tournament", mutates_args=())
def tournament_op(
    scores_BN: Tensor, mask_BN: Tensor, k_B1: Tensor, slots: int, rounds: int, base: float, keep_order: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`plan.tournament`: (weights, pooled scores, groups, positions, mask)."""
    plan = tournament(scores_BN, mask_BN, k_B1, slots, rounds, base, keep_order)
    # An operator's outputs must not be its inputs, nor each other (mask and positions can be, without rounds).
    weights, scores, groups, positions, mask = (part.clone() for part in plan)
    return weights, scores, groups, positions, mask


@tournament_op.register_fake
def _(scores_BN, mask_BN, k_B1, slots, rounds, base, keep_order):
    batch, num_tokens = scores_BN.shape
    integer, width = {"dtype": torch.int64}, min(slots, num_tokens)
    return (
        scores_BN.new_empty((batch, num_tokens)),
        scores_BN.new_empty((batch, width)),
        scores_BN.new_empty((batch, num_tokens), **integer),
        scores_BN.new_empty((batch, width), **integer),
        scores_BN.new_empty((batch, width), dtype=torch.bool),
    )


@torch.library.custom_op("transpooler::tournament_backward", mutates_args=())
def tournament_backward_op(
    grad_weights_BN: Tensor,
    grad_scores_BS: Tensor,
    scores_BN: Tensor,
    mask_BN: Tensor,
    k_B1: Tensor,
    slots: int,
    rounds: int,
    base: float,
    keep_order: bool,
) -> Tensor:
    """`plan.tournament_backward`: gradient of the scores."""
    return tournament_backward(
        grad_weights_BN, grad_scores_BS, scores_BN, mask_BN, k_B1, slots, rounds, base, keep_order
    )


@tournament_backward_op.register_fake
def _(grad_weights_BN, grad_scores_BS, scores_BN, mask_BN, k_B1, slots, rounds, base, keep_order):
    return torch.empty_like(scores_BN)


def _tournament_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _tournament_backward(ctx, grad_weights_BN, grad_scores_BS, grad_groups, grad_positions, grad_mask):
    grad = tournament_backward_op(grad_weights_BN, grad_scores_BS, *ctx.saved_tensors, *ctx.settings)
    return grad, None, None, None, None, None, None


tournament_op.register_autograd(_tournament_backward, setup_context=_tournament_setup)


@torch.library.custom_op("transpooler::group_sum", mutates_args=())
def group_sum_op(embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor, slots: int) -> Tensor:
    """out_j = sum of w_i e_i over the inputs i of group j, accumulated in float32 (float64)."""
    batch, num_tokens, dim = embeddings_BND.shape
    # One bag per (document, slot) and one more per document for what is masked, which is then left out.
    bags_BN = torch.where(groups_BN < 0, slots, groups_BN)
    bags_BN = bags_BN + torch.arange(batch, device=bags_BN.device)[:, None] * (slots + 1)
    sorted_bags, order = bags_BN.flatten().sort(stable=True)
    starts = torch.searchsorted(sorted_bags, torch.arange(batch * (slots + 1), device=bags_BN.device))
    rows = embeddings_BND.reshape(batch * num_tokens, dim).to(weights_BN.dtype)
    pooled = torch.nn.functional.embedding_bag(
        order, rows, starts, mode="sum", per_sample_weights=weights_BN.flatten()[order]
    )
    return pooled.view(batch, slots + 1, dim)[:, :slots].to(embeddings_BND.dtype, copy=True)


@group_sum_op.register_fake
def _(embeddings_BND, weights_BN, groups_BN, slots):
    return embeddings_BND.new_empty((embeddings_BND.shape[0], slots, embeddings_BND.shape[2]))


@torch.library.custom_op("transpooler::group_sum_backward", mutates_args=())
def group_sum_backward_op(
    grad_BSD: Tensor, embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """dE_i = w_i g_group(i) and dw_i = <e_i, g_group(i)>; exactly zero where masked."""
    grad_embeddings = torch.empty_like(embeddings_BND, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(weights_BN)
    masked_BN = groups_BN < 0
    for row in range(embeddings_BND.shape[0]):  # a document at a time, so that the gathered gradients stay small
        grad_ND = grad_BSD[row].to(weights_BN.dtype).index_select(0, groups_BN[row].clamp(min=0))
        product_N = torch.linalg.vecdot(embeddings_BND[row].to(weights_BN.dtype), grad_ND)
        grad_weights[row] = torch.where(masked_BN[row], 0, product_N)
        torch.mul(grad_ND, weights_BN[row][:, None], out=grad_ND)
        grad_embeddings[row] = grad_ND
    return grad_embeddings, grad_weights


@group_sum_backward_op.register_fake
def _(grad_BSD, embeddings_BND, weights_BN, groups_BN):
    return embeddings_BND.new_empty(embeddings_BND.shape), torch.empty_like(weights_BN)


def _group_sum_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])


def _group_sum_backward(ctx, grad_BSD):
    return *group_sum_backward_op(grad_BSD.contiguous(), *ctx.saved_tensors), None, None


group_sum_op.register_autograd(_group_sum_backward, setup_context=_group_sum_setup)

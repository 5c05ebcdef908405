"""The operators behind soft_topk, registered with torch.library: opaque, deterministic, and cheap in memory.

`transpooler::tournament` turns scores into a plan; `transpooler::group_sum` reads the embeddings once. autograd saves
the embeddings and O(N) numbers a document, nothing else. `backend` names the kernels (`backends.py`).

Autocast: the tournament runs in float32; the group sum has no rule of its own, so that it takes the embeddings as they
are and returns their dtype.

What a kernel or a fake makes is contiguous by construction (new_empty with a shape, never empty_like): arguments may
have any strides, and the fakes must promise what the kernels give.
"""

import torch
from torch import Tensor

from transpooler.model.ops.soft_topk.backends import choose_kernels


@torch.library.custom_op("transpooler::tournament", mutates_args=())
def tournament_op(
    scores_BN: Tensor, mask_BN: Tensor, k_B1: Tensor, slots: int, rounds: int, base: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`play_tournament`: (weights, pooled scores, groups, positions, mask)."""
    module = choose_kernels(backend, scores_BN.device, scores_BN.dtype == torch.float64)
    return tuple(part.contiguous() for part in module.tournament(scores_BN, mask_BN, k_B1, slots, rounds, base))


@tournament_op.register_fake
def _(scores_BN, mask_BN, k_B1, slots, rounds, base, backend):
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
    backend: str,
) -> Tensor:
    """`tournament.tournament_backward`: gradient of the scores."""
    module = choose_kernels(backend, scores_BN.device, scores_BN.dtype == torch.float64)
    plan = (scores_BN, mask_BN, k_B1, slots, rounds, base)
    return module.tournament_backward(grad_weights_BN, grad_scores_BS, *plan).contiguous()


@tournament_backward_op.register_fake
def _(grad_weights_BN, grad_scores_BS, scores_BN, mask_BN, k_B1, slots, rounds, base, backend):
    return scores_BN.new_empty(scores_BN.shape)


def _tournament_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _tournament_backward(ctx, grad_weights_BN, grad_scores_BS, grad_groups, grad_positions, grad_mask):
    grad = tournament_backward_op(grad_weights_BN, grad_scores_BS, *ctx.saved_tensors, *ctx.settings)
    return grad, *[None] * 6


# Under autocast scores are float32 all the same: base ** score in bfloat16 would lose their order. (float64 stays.)
for _device_type in ("cpu", "cuda"):
    tournament_op.register_autocast(_device_type, torch.float32)

tournament_op.register_autograd(_tournament_backward, setup_context=_tournament_setup)


@torch.library.custom_op("transpooler::group_sum", mutates_args=())
def group_sum_op(embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor, slots: int, backend: str) -> Tensor:
    """out_j = sum of w_i e_i over the inputs i of group j, accumulated in float32 (float64), in the dtype of e."""
    module = choose_kernels(backend, embeddings_BND.device, weights_BN.dtype == torch.float64)
    return module.group_sum(embeddings_BND, weights_BN, groups_BN, slots)


@group_sum_op.register_fake
def _(embeddings_BND, weights_BN, groups_BN, slots, backend):
    return embeddings_BND.new_empty((embeddings_BND.shape[0], slots, embeddings_BND.shape[2]))


@torch.library.custom_op("transpooler::group_sum_backward", mutates_args=())
def group_sum_backward_op(
    grad_BSD: Tensor, embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """de_i = w_i g_group(i) and dw_i = <e_i, g_group(i)>; exactly zero where masked."""
    module = choose_kernels(backend, embeddings_BND.device, weights_BN.dtype == torch.float64)
    return module.group_sum_backward(grad_BSD, embeddings_BND, weights_BN, groups_BN)


@group_sum_backward_op.register_fake
def _(grad_BSD, embeddings_BND, weights_BN, groups_BN, backend):
    return embeddings_BND.new_empty(embeddings_BND.shape), weights_BN.new_empty(weights_BN.shape)


def _group_sum_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.backend = inputs[4]


def _group_sum_backward(ctx, grad_BSD):
    return *group_sum_backward_op(grad_BSD, *ctx.saved_tensors, ctx.backend), None, None, None


group_sum_op.register_autograd(_group_sum_backward, setup_context=_group_sum_setup)

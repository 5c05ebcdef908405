"""The backend in plain torch: any device, any dtype, a tensor of token gradients as its only large temporary."""

import torch
from torch import Tensor

from transpooler.model.ops.soft_topk.tournament import play_tournament, tournament_backward

__all__ = ["group_sum", "group_sum_backward", "tournament", "tournament_backward"]


def tournament(scores_BN, mask_BN, k_B1, slots: int, rounds: int, base: float) -> tuple[Tensor, ...]:
    """`play_tournament`: (weights, pooled scores, groups, positions, mask)."""
    parts = play_tournament(scores_BN, mask_BN, k_B1, slots, rounds, base)
    # An operator's outputs must not be its inputs, nor each other (mask and positions can be, without rounds).
    return tuple(part.clone() for part in parts)


def group_sum(embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor, slots: int) -> Tensor:
    """out_j = sum of w_i e_i over the inputs i of group j, accumulated in the dtype of the weights."""
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


def group_sum_backward(
    grad_BSD: Tensor, embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """de_i = w_i g_group(i) and dw_i = <e_i, g_group(i)>; exactly zero where masked."""
    grad_embeddings = embeddings_BND.new_empty(embeddings_BND.shape)
    grad_weights = weights_BN.new_empty(weights_BN.shape)
    masked_BN = groups_BN < 0
    for row in range(embeddings_BND.shape[0]):  # a document at a time, so that the gathered gradients stay small
        grad_ND = grad_BSD[row].to(weights_BN.dtype).index_select(0, groups_BN[row].clamp(min=0))
        product_N = torch.linalg.vecdot(embeddings_BND[row].to(weights_BN.dtype), grad_ND)
        grad_weights[row] = torch.where(masked_BN[row], 0, product_N)
        torch.mul(grad_ND, weights_BN[row][:, None], out=grad_ND)
        grad_embeddings[row] = grad_ND
    return grad_embeddings, grad_weights

"""The public function: it checks arguments, settles dtypes and chooses the backend."""

from typing import NamedTuple

import torch
from torch import Tensor

from transpooler.model.ops.soft_topk.argument_checks import (
    check_backend,
    check_forward_mode,
    check_rounds,
    check_values,
    settle_arguments,
    values_are_checked,
)
from transpooler.model.ops.soft_topk.plain import group_sum, tournament
from transpooler.model.ops.soft_topk.reference import reference_soft_topk
from transpooler.model.ops.soft_topk.tournament import front_order, num_rounds


class SoftTopK(NamedTuple):
    """What every pooling operator returns; S = min(k, N) slots, filled ones first, in document order."""

    embeddings: Tensor
    """(B, S, D), in the dtype of the input; zero in empty slots."""
    mask: Tensor
    """(B, S) bool: slots that hold something."""
    scores: Tensor
    """(B, S) float32 (float64 for float64 scores): pooled scores, 0 in empty slots."""
    positions: Tensor
    """(B, S) int64: index of each slot's winner in the input; 0 in empty slots."""
    groups: Tensor
    """(B, N) int64: the slot into which each input flows, -1 where masked."""
    weights: Tensor
    """(B, N) like scores: its weight there."""


def soft_topk(
    embeddings_BND: Tensor,
    scores_BN: Tensor,
    k: int | Tensor,
    *,
    mask_BN: Tensor | None = None,
    base: float = 20.0,
    keep_order: bool = True,
    slots: int | None = None,
    rounds: int | None = None,
    backend: str = "auto",
    validate: bool | None = None,
) -> SoftTopK:
    """Differentiable top-k by Successive Halving (arXiv 2010.15552), in plan form.

    Args:
        embeddings_BND: (B, N, D), any floating dtype.
        scores_BN: (B, N) in (0, 1] (a sigmoid + 1e-5 will do); computed in float32 at least, whatever autocast says.
        k: slots to keep; or int64 (B,), one for each document, with `slots` as their upper bound and, to save work,
            `rounds` of halving that suffice for every document (default: enough for any).
        mask_BN: (B, N) bool, False = padding: weight and gradient exactly 0, never selected. None: no padding.
        base: b of the pair softmax, above 1.
        keep_order: slots in document order of their winners (the paper's "sort back"), else best pooled score first.
        backend: "cpp" (CPU), "triton" (CUDA), "torch" (anywhere), "reference" (step by step, slow), or "auto": the
            fastest that runs here, which is logged once.
        validate: check the values of scores and k too. None: on CPU, where it costs next to nothing; on a GPU, which
            would have to wait, with TRANSPOOLER_DEBUG=1; not in compiled code.

    Returns:
        SoftTopK. N <= k is the identity; a document with at most k valid tokens keeps them unchanged, at the front.

    Raises:
        ValueError: names the argument, its value and what was expected.
        NotImplementedError: in forward-mode differentiation, for which the operators have no formula.
    """
    scores_BN, k_B, bound, mask_BN = settle_arguments(embeddings_BND, scores_BN, k, mask_BN, slots)
    check_backend(backend, k, base, embeddings_BND, scores_BN)
    if values_are_checked(scores_BN) if validate is None else validate:
        check_values(scores_BN.detach(), k, slots, mask_BN)
        check_rounds(rounds, k_B, mask_BN)
    num_tokens = scores_BN.shape[1]
    if isinstance(k, int):
        if num_tokens <= k:
            return _identity(embeddings_BND, scores_BN, mask_BN, keep_order)
        if backend == "reference":  # with one k for all: check_backend
            return SoftTopK(*reference_soft_topk(embeddings_BND, scores_BN, k, mask_BN, base, keep_order))
    check_forward_mode(embeddings_BND, scores_BN)  # the reference, made of plain operations, has one
    if rounds is None:
        rounds = num_rounds(num_tokens, k if isinstance(k, int) else 1)
    weights, scores, groups, positions, mask = tournament(
        scores_BN, mask_BN, k_B[:, None], bound, rounds, float(base), backend
    )
    embeddings = group_sum(embeddings_BND, weights, groups, bound, backend)
    pooled = SoftTopK(embeddings, mask, scores, positions, groups, weights)
    return pooled if keep_order else sort_best_first(pooled)


def sort_best_first(pooled: SoftTopK) -> SoftTopK:
    """The same slots by pooled score, highest first; ties keep document order, empty slots stay last."""
    scores_BS = torch.where(pooled.mask, pooled.scores.detach(), -torch.inf)
    order_BS = scores_BS.sort(dim=1, descending=True, stable=True).indices
    place_BN = order_BS.argsort(dim=1).gather(1, pooled.groups.clamp(min=0))
    return pooled._replace(
        embeddings=pooled.embeddings.gather(1, order_BS[..., None].expand_as(pooled.embeddings)),
        scores=pooled.scores.gather(1, order_BS),
        positions=pooled.positions.gather(1, order_BS),
        groups=torch.where(pooled.groups < 0, -1, place_BN),
    )


def _identity(embeddings_BND: Tensor, scores_BN: Tensor, mask_BN: Tensor, keep_order: bool) -> SoftTopK:
    """N <= k: nothing to choose, so that real tokens move to the front, and empty slots are zero."""
    order_BS = front_order(mask_BN)
    filled_BS = mask_BN.gather(1, order_BS)
    embeddings_BSD = embeddings_BND.gather(1, order_BS[..., None].expand_as(embeddings_BND))
    pooled = SoftTopK(
        embeddings=torch.where(filled_BS[..., None], embeddings_BSD, 0),
        mask=filled_BS,
        scores=torch.where(filled_BS, scores_BN.gather(1, order_BS), 0),
        positions=torch.where(filled_BS, order_BS, 0),
        groups=torch.where(mask_BN, mask_BN.cumsum(1) - 1, -1),
        weights=mask_BN.to(scores_BN.dtype),
    )
    return pooled if keep_order else sort_best_first(pooled)

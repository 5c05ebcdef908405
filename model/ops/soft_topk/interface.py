"""The public function: arguments checked, dtypes settled, backend chosen."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.ops.soft_topk.backends import BACKENDS, kernels
from model.ops.soft_topk.ops import group_sum_op, tournament_op
from model.ops.soft_topk.plan import num_rounds
from model.ops.soft_topk.reference import reference_soft_topk


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
) -> SoftTopK:
    """Differentiable top-k by Successive Halving (arXiv 2010.15552), in plan form.

    Args:
        embeddings_BND: (B, N, D), any floating dtype.
        scores_BN: (B, N) in (0, 1] (+ 1e-5); computed in float32 at least, whatever autocast says. Values are not
            checked: that would make a GPU wait.
        k: slots to keep; or int64 (B,), one for each document, with `slots` as their upper bound and, to save work,
            `rounds` of halving that suffice for every document (default: enough for any).
        mask_BN: (B, N) bool, False = padding: weight and gradient exactly 0, never selected. None: no padding.
        base: b of the pair softmax, above 1.
        keep_order: slots in document order of their winners (the paper's "sort back"), else best pooled score first.
        backend: "cpp" (CPU), "triton" (CUDA), "torch" (anywhere), "reference" (step by step, slow), or "auto": the
            fastest that runs here, which is logged once.

    Returns:
        SoftTopK. N <= k is the identity; a document with at most k valid tokens keeps them unchanged, at the front.

    Raises:
        ValueError: names the argument, its value and what was expected.
    """
    mask_BN = _check(embeddings_BND, scores_BN, k, mask_BN, base, slots, backend)
    batch, num_tokens, _ = embeddings_BND.shape
    scores_BN = scores_BN if scores_BN.dtype == torch.float64 else scores_BN.float()
    bound = k if isinstance(k, int) else slots
    assert bound is not None
    if isinstance(k, int) and num_tokens <= k:
        return _identity(embeddings_BND, scores_BN, mask_BN)
    bound = min(bound, num_tokens)
    if backend == "reference":
        if not isinstance(k, int):
            raise ValueError("backend 'reference' takes one k for the whole batch, an int")
        return SoftTopK(*reference_soft_topk(embeddings_BND, scores_BN, k, mask_BN, base, keep_order))
    k_B1 = torch.full((batch, 1), k, device=scores_BN.device) if isinstance(k, int) else k.view(batch, 1)
    if rounds is None:
        rounds = num_rounds(num_tokens, k if isinstance(k, int) else 1)
    weights, scores, groups, positions, mask = tournament_op(
        scores_BN, mask_BN, k_B1, bound, rounds, float(base), keep_order, backend
    )
    pooled = group_sum_op(embeddings_BND, weights, groups, bound, backend)
    return SoftTopK(pooled, mask, scores, positions, groups, weights)


def _identity(embeddings_BND: Tensor, scores_BN: Tensor, mask_BN: Tensor) -> SoftTopK:
    """N <= k: nothing to choose. Empty slots are zero here too."""
    positions_BN = torch.arange(scores_BN.shape[1], device=scores_BN.device).expand(scores_BN.shape)
    groups_BN = torch.where(mask_BN, positions_BN, -1)
    embeddings_BND = torch.where(mask_BN[..., None], embeddings_BND, 0)
    scores_BN = torch.where(mask_BN, scores_BN, 0)
    return SoftTopK(embeddings_BND, mask_BN, scores_BN, groups_BN.clamp(min=0), groups_BN, mask_BN.to(scores_BN.dtype))


def _check(embeddings, scores, k, mask, base, slots, backend) -> Tensor:
    """Everything that can be checked without reading a device tensor's values; returns the mask."""
    if embeddings.dim() != 3 or not embeddings.is_floating_point():
        raise ValueError(f"embeddings: {_describe(embeddings)}; expected a floating tensor (batch, tokens, dim)")
    if scores.shape != embeddings.shape[:2] or not scores.is_floating_point():
        raise ValueError(f"scores: {_describe(scores)}; expected a floating tensor {tuple(embeddings.shape[:2])}")
    if embeddings.shape[1] == 0:
        raise ValueError("embeddings: 0 tokens; expected at least 1")
    if mask is None:
        mask = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if mask.shape != scores.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: {_describe(mask)}; expected a bool tensor {tuple(scores.shape)}")
    for name, tensor in (("scores", scores), ("mask", mask)):
        if tensor.device != embeddings.device:
            raise ValueError(f"{name}: on {tensor.device}; expected {embeddings.device}, where the embeddings are")
    if isinstance(k, Tensor):
        if k.shape != scores.shape[:1] or k.dtype != torch.int64 or slots is None or slots < 1:
            raise ValueError(f"k: {_describe(k)}; expected int64 ({scores.shape[0]},) together with slots >= 1")
    elif isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: {k!r}; expected an integer of at least 1")
    if not base > 1:
        raise ValueError(f"base: {base}; expected a number above 1")
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend in ("cpp", "triton"):
        kernels(backend, embeddings.device, scores.dtype == torch.float64)
    return mask


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"

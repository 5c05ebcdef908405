"""soft_topk as plain torch operations, for what translates a graph one operation at a time (ONNX, OpenVINO)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from transpooler.model.ops.soft_topk import torch_backend
from transpooler.model.ops.soft_topk.ops import group_sum_op, tournament_op

_plain = False  # no ContextVar, which torch.compile cannot read


@contextmanager
def plain_operations() -> Iterator[None]:
    """Inside, pooling in this process calls no operator of ours: slower, and differentiable by torch's rules alone."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def tournament(
    scores_BN: Tensor, mask_BN: Tensor, k_B1: Tensor, slots: int, rounds: int, base: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`ops.tournament_op`, or the operations that it stands for."""
    if _plain:
        weights, scores, groups, positions, mask = torch_backend.tournament(
            scores_BN, mask_BN, k_B1, slots, rounds, base
        )
        return weights, scores, groups, positions, mask
    return tournament_op(scores_BN, mask_BN, k_B1, slots, rounds, base, backend)


def group_sum(embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor, slots: int, backend: str) -> Tensor:
    """`ops.group_sum_op`, or a scatter of the weighted embeddings: (B, N, D) -> (B, slots, D)."""
    if embeddings_BND.shape[-1] == 0:  # only the plan is wanted
        return embeddings_BND.new_zeros(len(embeddings_BND), slots, 0)
    if not _plain:
        return group_sum_op(embeddings_BND, weights_BN, groups_BN, slots, backend)
    batch, _, dim = embeddings_BND.shape
    slot_BND = torch.where(groups_BN < 0, slots, groups_BN)[..., None].expand(embeddings_BND.shape)
    weighted_BND = embeddings_BND * weights_BN[..., None]
    sums = weighted_BND.new_zeros((batch, slots + 1, dim)).scatter_add(1, slot_BND, weighted_BND)
    return sums[:, :slots].to(embeddings_BND.dtype)

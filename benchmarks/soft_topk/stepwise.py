"""The paper's algorithm in tensor operations, step by step: what speed is measured against.

arXiv 2010.15552, section 2: sort, pair, merge *embeddings and scores*, round by round. Needs n = k * 2^r, no padding.
"""

import torch
from torch import Tensor


def stepwise_soft_topk(embeddings_BND: Tensor, scores_BN: Tensor, k: int, base: float = 20.0) -> tuple[Tensor, Tensor]:
    """(B, N, D) and (B, N) -> embeddings (B, k, D) and scores (B, k), survivors in document order."""
    embeddings, scores = embeddings_BND, scores_BN
    while scores.shape[1] > k:
        half = scores.shape[1] // 2
        order = scores.argsort(dim=1, descending=True, stable=True)
        # The best half, in document order ("sort back"), and whom each of them meets.
        winners, back = order[:, :half].sort(dim=1)
        losers = order[:, half:].flip(1).gather(1, back)
        a, c = scores.gather(1, winners), scores.gather(1, losers)
        p = torch.sigmoid(base**a - base**c)
        scores = p * a + (1 - p) * c
        share = p[..., None].to(embeddings.dtype)
        embeddings = share * _rows(embeddings, winners) + (1 - share) * _rows(embeddings, losers)
    return embeddings, scores


def _rows(embeddings_BND: Tensor, index_BM: Tensor) -> Tensor:
    return embeddings_BND.gather(1, index_BM[..., None].expand(-1, -1, embeddings_BND.shape[-1]))

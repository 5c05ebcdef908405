"""A threshold gate behind the interface of `soft_topk`: k tokens kept unchanged, and a gradient for every score.

With x = logit(score), what a scorer gave, each document has one threshold t at which its gates add up to k,
`Σ_i sigmoid(x_i - t) = k`. Forward, the k best tokens pass unchanged (a hard gather; they are the k highest gates).
Backward, token i counts as gate_i * e_i, and t follows the scores (sigmoid top-k with an implicit gradient,
https://thomasahle.com, DiffSys 2025):

    dL/dx = v * (g - <v, g> / Σ v),   v = gate * (1 - gate),   g_i = <e_i, dL/dout_i> where kept, else 0

So tokens that were dropped learn, too: a gate that opens takes its share from all others. That is what `hard`, which is
this without a threshold, lacks. The sibling LapSum (arXiv 2503.06242) does the same in closed form with Laplace's
distribution; it sorts all scores for it, and its sums over ranks of tokens are no use where a document lies on several
devices. Bisection needs sums of n numbers alone. Cost: ITERATIONS passes over n scores, and one read of the k tokens.
Given up: what a dropped token would have given cannot be felt, since the decoder never sees it.
"""

import torch
from torch import Tensor

from transpooler.model.ops.baselines import keep_best
from transpooler.model.ops.soft_topk import SoftTopK
from transpooler.model.ops.soft_topk.argument_checks import settle_arguments

EPS = 1e-6
"""Scores are clamped to [EPS, 1 - EPS], so that logits and the interval of the threshold are finite."""
ITERATIONS = 32
"""Halvings of an interval of at most 60: to 1e-8, which the step of Newton that follows squares."""


def threshold(
    embeddings_BND: Tensor,
    scores_BN: Tensor,
    k: int | Tensor,
    *,
    mask_BN: Tensor | None = None,
    slots: int | None = None,
) -> SoftTopK:
    """The k best tokens unchanged; in the backward pass each counts as gate * token, with gates that add up to k."""
    scores_BN, k_B, slots, mask_BN = settle_arguments(embeddings_BND, scores_BN, k, mask_BN, slots)
    gates_BN = soft_gates(scores_BN, k_B, mask_BN)
    return keep_best(embeddings_BND, scores_BN, gates_BN, scores_BN, k_B, slots, mask_BN)


def soft_gates(scores_BN: Tensor, k_B: Tensor, mask_BN: Tensor) -> Tensor:
    """Gates in (0, 1) that add up to k in each document, 0 for padding; 1 in documents of at most k tokens.

    scores_BN: (B, N) float32 or float64 in (0, 1]; k_B: int64 (B,), at least 1; mask_BN: bool (B, N).
    """
    fits_B1 = mask_BN.sum(1, keepdim=True) <= k_B[:, None]
    known_BN = torch.where(mask_BN, scores_BN, 0.5).clamp(EPS, 1 - EPS)
    logits_BN = (known_BN / (1 - known_BN)).log()
    at_BN = torch.where(mask_BN, logits_BN.detach(), -torch.inf)
    found_B1 = _bisect(at_BN, k_B[:, None], mask_BN.sum(1, keepdim=True))
    # A step of Newton from the threshold that was found, whose derivative by the scores is the implicit one, v / Σ v.
    gates_BN = torch.where(mask_BN, torch.sigmoid(logits_BN - found_B1), 0)
    closed_BN = torch.sigmoid(found_B1 - at_BN)  # 1 - gate, without rounding
    slope_B1 = (gates_BN.detach() * closed_BN).sum(1, keepdim=True)
    excess_B1 = gates_BN.sum(1, keepdim=True) - k_B[:, None]
    step_B1 = torch.where(fits_B1, 0, excess_B1) / torch.where(fits_B1, 1, slope_B1)
    gates_BN = torch.sigmoid(logits_BN - found_B1 - step_B1)
    return torch.where(mask_BN, torch.where(fits_B1, 1, gates_BN), 0)


def _bisect(logits_BN: Tensor, k_B1: Tensor, count_B1: Tensor) -> Tensor:
    """(B, 1): the threshold at which the gates of `count` tokens, more than k, add up to k.

    Logits lie in ±14. At 15 + log(count) all gates together are below 1, and at -15 - log(count) less than 1 is missing
    to `count`, so that the threshold lies between.
    """
    high_B1 = 15 + count_B1.clamp(min=1).to(logits_BN.dtype).log()
    low_B1 = -high_B1
    for _ in range(ITERATIONS):
        middle_B1 = (low_B1 + high_B1) / 2
        too_many = torch.sigmoid(logits_BN - middle_B1).sum(1, keepdim=True) > k_B1
        low_B1, high_B1 = torch.where(too_many, middle_B1, low_B1), torch.where(too_many, high_B1, middle_B1)
    return (low_B1 + high_B1) / 2

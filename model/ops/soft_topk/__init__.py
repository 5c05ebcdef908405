"""Successive Halving top-k: `soft_topk`, its slow reference, its plan, its operators."""

from model.ops.soft_topk.interface import BACKENDS, SoftTopK, soft_topk

__all__ = ["BACKENDS", "SoftTopK", "soft_topk"]

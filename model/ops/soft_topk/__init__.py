"""Successive Halving top-k: `soft_topk`, its slow reference, its plan, its operators."""

from transpooler.model.ops.soft_topk.backends import BACKENDS
from transpooler.model.ops.soft_topk.interface import SoftTopK, soft_topk

__all__ = ["BACKENDS", "SoftTopK", "soft_topk"]

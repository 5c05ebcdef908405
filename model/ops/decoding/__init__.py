"""Decoding at the speed of memory: weights packed once, and attention of few queries, on CPUs."""

from transpooler.model.ops.decoding.prepare import PRECISIONS, prepare_for_inference

__all__ = ["PRECISIONS", "prepare_for_inference"]

"""The loss of a text's tokens, whole or in pieces whose logits are computed again in the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from transpooler.model.input_checks import describe
from transpooler.model.ops.soft_topk.argument_checks import promote

IGNORED_LABEL = -100
PIECE_TARGETS = 64
"""Targets of a document whose logits are held at a time."""


def token_loss(logits_BTV: Tensor, labels_BT: Tensor, num_items: int | Tensor | None) -> Tensor:
    """Cross entropy of labels other than -100, summed in float32 at least, divided by `num_items` or their number."""
    if labels_BT.shape != logits_BTV.shape[:2]:
        expected = tuple(logits_BTV.shape[:2])
        raise ValueError(f"labels: {describe(labels_BT)}; expected {expected}, one for each decoder token")
    return _sum_up(logits_BTV, labels_BT) / count_items(labels_BT, num_items)


def count_items(labels_BT: Tensor, num_items: int | Tensor | None) -> int | Tensor:
    """What the sum is divided by: `num_items`, or the number of labels, at least 1."""
    return (labels_BT != IGNORED_LABEL).sum().clamp(min=1) if num_items is None else num_items


def _sum_up(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    return F.cross_entropy(
        promote(logits_BTV.flatten(0, 1)), labels_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )


class LossPiece(GradientCheckpointingLayer):
    """The summed loss of some targets; with activation checkpointing nothing of a vocabulary's width is kept of them.

    A vocabulary of 32,000 takes more than the decoder's layers: logits, their exponentials and their gradients.
    """

    def forward(self, states_BTd: Tensor, labels_BT: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        return _sum_up(head(states_BTd), labels_BT)

    def cuts(self, states_BTd: Tensor, labels_BT: Tensor) -> bool:
        """Whether the loss is summed in pieces: while layers are checkpointed, and there are several pieces."""
        checkpointed = self.training and self.gradient_checkpointing and states_BTd.requires_grad
        if not checkpointed or torch.compiler.is_compiling():
            return False
        return labels_BT.shape == states_BTd.shape[:2] and labels_BT.shape[1] > PIECE_TARGETS

    def sum_pieces(self, states_BTd: Tensor, labels_BT: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum the losses of all pieces."""
        pieces = zip(states_BTd.split(PIECE_TARGETS, 1), labels_BT.split(PIECE_TARGETS, 1), strict=True)
        return torch.stack([self(states, labels, head) for states, labels in pieces]).sum()

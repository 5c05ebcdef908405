"""What the encoder and the model return."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from transpooler.model.ops.soft_topk.argument_checks import promote


class PooledStage(NamedTuple):
    """What a stage did with a batch, for inspection; no gradient, no embeddings."""

    groups_BN: Tensor
    weights_BN: Tensor
    mask_BN: Tensor
    """The real tokens before the stage."""
    scored: bool
    """Whether the operator chooses by scores."""


@dataclass
class EncoderOutput(BaseModelOutput):
    """The kept tokens of a batch; S slots a document, filled ones first, padding dropped: S <= N.

    hidden_states: embeddings and each layer's output (after its pooling), (B, N, D), N shrinks where a stage pools.
    attentions: (B, H, N, m) a layer, before its pooling; column j is the j-th token of the query's own block of m.
    """

    last_hidden_state: Tensor | None = None
    """(B, S, D), zero in empty slots."""
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    attention_mask: Tensor | None = None
    """(B, S) int64: 1 = the slot holds something."""
    positions: Tensor | None = None
    """(B, S) int64: position in the document (padding not counted) of each slot's winner."""
    pooled_stages: tuple[PooledStage, ...] | None = None
    """What each stage did, with output_pooling=True."""

    def document_embedding(self) -> Tensor:
        """(B, D): mean over the slots that hold something, summed in float32 at least; zero for an empty document."""
        assert self.last_hidden_state is not None
        assert self.attention_mask is not None
        wide_BSD = promote(self.last_hidden_state)
        held_BS = self.attention_mask.to(wide_BSD.dtype)
        summed_BD = torch.einsum("bs,bsd->bd", held_BS, wide_BSD)
        return (summed_BD / held_BS.sum(1, keepdim=True).clamp(min=1)).to(self.last_hidden_state.dtype)


class Selection(NamedTuple):
    """What the poolers kept of each document."""

    weights_BN: Tensor
    """float32: product of a token's weights through all stages; 1 where nothing pools, 0 for padding."""
    slots_BN: Tensor
    """int64: the decoder's memory slot into which the token flows, -1 for padding and for what was dropped."""
    stage_weights: list[Tensor]
    """(B, N) float32 each: the product after each stage."""

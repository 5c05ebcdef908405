"""What the encoder and the model return."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput


@dataclass
class EncoderOutput(ModelOutput):
    """The kept tokens of a batch; S slots a document, filled ones first."""

    last_hidden_state: Tensor | None = None
    """(B, S, D)."""
    attention_mask: Tensor | None = None
    """(B, S) int64: 1 = the slot holds something."""
    positions: Tensor | None = None
    """(B, S) int64: position in the document (padding not counted) of each slot's winner."""
    hidden_states: tuple[Tensor, ...] | None = None
    """Embeddings and each layer's output, if asked for; lengths fall where a stage pools."""


@dataclass
class TranspoolerOutput(Seq2SeqLMOutput):
    """`Seq2SeqLMOutput` with the mask that belongs to encoder_last_hidden_state."""

    encoder_attention_mask: Tensor | None = None


class Selection(NamedTuple):
    """What the poolers kept of each document."""

    weights_BN: Tensor
    """float32: product of a token's weights through all stages; 1 where nothing pools, 0 for padding."""
    slots_BN: Tensor
    """int64: the decoder's memory slot into which the token flows, -1 for padding and for what was dropped."""
    stage_weights: list[Tensor]
    """(B, N) float32 each: the product after each stage."""

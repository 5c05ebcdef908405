"""The blockwise encoder with its pooling schedule.

B batch, N source tokens, D width; after a stage, S slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from model.config import TranspoolerConfig
from model.layers import DecoderLayer, EncoderLayer, FinalNorm
from model.outputs import EncoderOutput
from model.pooler import Pooler
from model.positions import rotary, sinusoidal


class TranspoolerPreTrainedModel(PreTrainedModel):
    """What the encoder, the decoder and the whole share as `transformers` models."""

    config_class = TranspoolerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = [EncoderLayer.__name__, DecoderLayer.__name__, Pooler.__name__]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012


class Embedder(nn.Module):
    """Token embeddings as a stack reads them: with sinusoids (scaled by sqrt(D) first) or learned positions added, or
    plain before rotary; then the norm, if any."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        self.sinusoids, self.dropout = config.positions == "sinusoidal", config.dropout
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_positions, config.d_model) if learned else None
        self.norm = nn.LayerNorm(config.d_model) if config.embedding_norm else None

    def forward(self, embeddings_BND: Tensor, positions_BN: Tensor) -> Tensor:
        """positions_BN: int64 (B, N) or (1, N)."""
        if self.sinusoids:
            dim = embeddings_BND.shape[-1]
            embeddings_BND = embeddings_BND * dim**0.5 + sinusoidal(positions_BN, dim, embeddings_BND.dtype)
        if self.positions is not None:
            embeddings_BND = embeddings_BND + self.positions(positions_BN)
        if self.norm is not None:
            embeddings_BND = self.norm(embeddings_BND)
        return F.dropout(embeddings_BND, self.dropout, self.training)


class PooledStage(NamedTuple):
    """What a stage did in the last forward pass, for inspection; no gradient, no embeddings."""

    groups_BN: Tensor
    weights_BN: Tensor
    mask_BN: Tensor
    """What was real before the stage."""


class TranspoolerEncoder(TranspoolerPreTrainedModel):
    """Documents to the few token representations that matter; useful alone for retrieval and classification."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embedder = Embedder(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        stages = config.architecture.pooling
        self.poolers = nn.ModuleDict({str(stage.after_layer): Pooler(config, stage) for stage in stages})
        self.final_norm = FinalNorm(config)
        self.last_pooling: list[PooledStage] = []
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> EncoderOutput | tuple:
        """input_ids int64 (B, N) or inputs_embeds (B, N, D); attention_mask (B, N), 0 = padding, on either side."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeddings, mask = self._embed(input_ids, attention_mask, inputs_embeds)
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        x = self.embedder(embeddings, positions)
        positions = positions.expand(mask.shape)
        hidden_states, self.last_pooling = [x], []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, mask, self._cos_sin(positions, x))
            if str(number) in self.poolers:
                x, mask, positions = self._pool(self.poolers[str(number)], x, mask, positions)
            hidden_states.append(x)
        output = EncoderOutput(
            last_hidden_state=self.final_norm(x),
            attention_mask=mask.long(),
            positions=positions,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()

    def _embed(self, input_ids, attention_mask, inputs_embeds) -> tuple[Tensor, Tensor]:
        """Embeddings and bool mask with real tokens at the front, so that the side of the padding changes nothing."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        mask = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        if attention_mask is not None:
            order = front_order(attention_mask.bool())
            mask = attention_mask.bool().gather(1, order)
            given = given.gather(1, order if inputs_embeds is None else order[..., None].expand_as(given))
        return (self.embed_tokens(given) if inputs_embeds is None else given), mask

    def _cos_sin(self, positions: Tensor, x: Tensor):
        if self.config.positions != "rotary":
            return None
        return rotary(positions, self.config.d_model // self.config.num_heads, x.dtype)

    def _pool(self, pooler: nn.Module, x: Tensor, mask: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = pooler(x, mask)
        self.last_pooling.append(PooledStage(pooled.groups, pooled.weights.detach().float(), mask))
        return pooled.embeddings, pooled.mask, positions.gather(1, pooled.positions)


def front_order(mask_BN: Tensor) -> Tensor:
    """int64 (B, N): columns of each row with its real tokens first, in order."""
    return (~mask_BN).to(torch.uint8).sort(dim=1, stable=True).indices

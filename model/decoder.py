"""The decoder: an ordinary Transformer decoder whose memory is the few slots that the encoder kept."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import can_return_tuple

from transpooler.model.config import TranspoolerConfig
from transpooler.model.encoder import TranspoolerPreTrainedModel
from transpooler.model.input_checks import check_inputs, check_mask, refuse_unknown, settle_cache
from transpooler.model.layers.embedder import Embedder
from transpooler.model.layers.norms import FinalNorm
from transpooler.model.layers.positions import RelativeBias, add_bias
from transpooler.model.layers.transformer import DecoderLayer
from transpooler.model.layout import open_empty_rows


class TranspoolerDecoder(TranspoolerPreTrainedModel):
    """B batch, T new target tokens, S memory slots, D width."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embedder = Embedder(config, norm_first=config.decoder_norm_first)
        relative = config.positions == "relative"
        self.relative_bias = RelativeBias(config, config.decoder_layers, bidirectional=False) if relative else None
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.decoder_layers))
        self.final_norm = FinalNorm(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """input_ids (B, T) continue `past_key_values`; attention_mask (B, past + T) covers past and new tokens.

        encoder_attention_mask (B, S) is the mask of the encoder's output, not that of its input. `cache` is the newer
        name of past_key_values.
        """
        refuse_unknown(kwargs, self)
        past_key_values = settle_cache(past_key_values, cache)
        given = check_inputs(input_ids, inputs_embeds, self.config, prefix="decoder_")
        memory_mask = _prepare_memory_mask(encoder_hidden_states, encoder_attention_mask, given.shape[0])
        embeddings = given if given.is_floating_point() else self.embed_tokens(given)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not (self.training and self.layers[0].gradient_checkpointing):
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        keep_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        num_past = 0 if past_key_values is None else past_key_values.get_seq_length()
        positions = (torch.arange(embeddings.shape[1], device=embeddings.device) + num_past)[None]
        x = self.embedder(embeddings, positions)
        cos_sin = self.cos_sin(positions, x)
        own_cache = None if past_key_values is None else past_key_values.self_attention_cache
        mask = create_causal_mask(self.config, x, attention_mask, own_cache)
        masks = self._add_biases(mask, positions, num_past + embeddings.shape[1])
        hidden_states, attentions, cross_attentions = [], [], []
        for layer, mask in zip(self.layers, masks, strict=True):
            hidden_states.append(x)
            x, weights, cross_weights = layer(
                x, encoder_hidden_states, memory_mask, mask, cos_sin, output_attentions, past_key_values=past_key_values
            )
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        x = self.final_norm(x)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*hidden_states, x) if keep_all else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions else None,
        )

    def _add_biases(self, mask: Any, positions_1T: Tensor, num_tokens: int) -> list[Tensor | None]:
        """The layers' masks; with relative positions the layers' biases where `mask` (None: causal) lets attend."""
        if self.relative_bias is None:
            return [mask] * len(self.layers)
        num_keys = num_tokens if mask is None else mask.shape[-1]
        keys_1M = torch.arange(num_keys, device=positions_1T.device)[None]
        if mask is None:
            mask = (keys_1M[:, None] <= positions_1T[..., None])[:, None]
        buckets = self.relative_bias.buckets(positions_1T, keys_1M)
        if len(self.relative_bias.tables) == 1:
            return [add_bias(self.relative_bias(buckets, 0), mask)] * len(self.layers)
        return [add_bias(self.relative_bias(buckets, layer), mask) for layer in range(len(self.layers))]


def _prepare_memory_mask(memory: Tensor | None, mask_BS: Tensor | None, batch: int) -> Tensor:
    """Return the bool mask (B, 1, 1, S) of a memory (B, S, D). A document without kept tokens attends to zeros."""
    if memory is None or memory.dim() != 3 or memory.shape[0] == 0 or batch % memory.shape[0]:
        found = None if memory is None else tuple(memory.shape)
        raise ValueError(
            f"encoder_hidden_states: {found}; expected the encoder's output for {batch} documents (B, S, D)"
        )
    if mask_BS is None:
        mask_BS = torch.ones(memory.shape[:2], device=memory.device)
    check_mask("encoder_attention_mask", mask_BS, memory)
    return open_empty_rows(mask_BS.bool())[:, None, None]

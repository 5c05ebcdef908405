"""The decoder: an ordinary Transformer decoder whose memory is the few slots that the encoder kept."""

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from model.config import TranspoolerConfig
from model.encoder import Embedder, TranspoolerPreTrainedModel
from model.layers import DecoderLayer, FinalNorm, causal_mask
from model.positions import rotary


class TranspoolerDecoder(TranspoolerPreTrainedModel):
    """B batch, T new target tokens, S memory slots, D width."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embedder = Embedder(config)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.decoder_layers))
        self.final_norm = FinalNorm(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """input_ids (B, T) continue `past_key_values`; attention_mask covers past and new tokens."""
        if encoder_hidden_states is None or encoder_attention_mask is None:
            raise ValueError("the decoder needs encoder_hidden_states and encoder_attention_mask")
        embeddings = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None and not (self.training and self.is_gradient_checkpointing):
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        num_past = 0 if past_key_values is None else past_key_values.get_seq_length()
        num_new = embeddings.shape[1]
        positions = torch.arange(num_past, num_past + num_new, device=embeddings.device)[None]
        x = self.embedder(embeddings, positions)
        cos_sin = None
        if self.config.positions == "rotary":
            cos_sin = rotary(positions, self.config.d_model // self.config.num_heads, x.dtype)
        mask = causal_mask(num_new, num_past, attention_mask, x.device)
        memory_mask = encoder_attention_mask.bool()
        hidden_states = [x]
        for layer in self.layers:
            x = layer(x, encoder_hidden_states, memory_mask, mask, cos_sin, past_key_values=past_key_values)
            hidden_states.append(x)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.final_norm(x),
            past_key_values=past_key_values,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )

"""The pooling encoder-decoder as a `transformers` model: loss, generation, saving, inspection."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, GenerationMixin
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqModelOutput
from transformers.utils import ModelOutput

from model.config import TranspoolerConfig
from model.decoder import TranspoolerDecoder
from model.encoder import TranspoolerEncoder, TranspoolerPreTrainedModel
from model.inspection import pooling_statistics, select
from model.outputs import Selection, TranspoolerOutput

IGNORED_LABEL = -100


class TranspoolerModel(TranspoolerPreTrainedModel):
    """Encoder and decoder over shared embeddings, without a language-model head."""

    base_model_prefix = ""
    _tied_weights_keys = {  # noqa: RUF012 (transformers' own convention)
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder, self.decoder = TranspoolerEncoder(config), TranspoolerDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.shared

    def set_input_embeddings(self, value: nn.Module) -> None:
        for owner, name in ((self, "shared"), (self.encoder, "embed_tokens"), (self.decoder, "embed_tokens")):
            setattr(owner, name, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """As BART's; encoder_outputs carry the mask of what was kept, and attention_mask that of the source."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, inputs_embeds, output_hidden_states=output_hidden_states
            )
        memory, memory_mask = encoder_outputs[0], memory_mask_of(encoder_outputs, attention_mask)
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=memory,
            encoder_attention_mask=memory_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            output_hidden_states=output_hidden_states,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
        )


class TranspoolerForConditionalGeneration(TranspoolerPreTrainedModel, GenerationMixin):
    """The model to train and to summarize with."""

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}  # noqa: RUF012 (transformers' own convention)

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.model = TranspoolerModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> TranspoolerOutput | tuple:
        """Logits (B, T, vocabulary), and with labels (B, T), -100 = ignored, the loss.

        The loss is the sum of the tokens' cross entropies in float32, divided by num_items_in_batch, or by the number
        of labels (at least 1). decoder_input_ids default to the labels shifted right.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(
                input_ids, attention_mask, inputs_embeds, output_hidden_states=output_hidden_states
            )
        outputs = self.model(
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        output = TranspoolerOutput(
            loss=None if labels is None else token_loss(logits, labels, num_items_in_batch),
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attention_mask=memory_mask_of(encoder_outputs, attention_mask),
        )
        return output if return_dict is not False else output.to_tuple()

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels shifted right behind decoder_start_token_id; ignored ones become padding."""
        shifted = F.pad(labels[:, :-1], (1, 0), value=self.config.decoder_start_token_id)
        return shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)

    def select(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Selection:
        """Which tokens the poolers keep of each document, with what weight; see `Selection`."""
        return select(self.model.encoder, input_ids, attention_mask)

    def pooling_statistics(self) -> dict[str, float]:
        """What the poolers did in the last forward pass; see `inspection.pooling_statistics`."""
        return pooling_statistics(self.model.encoder.last_pooling)


def memory_mask_of(encoder_outputs: ModelOutput | tuple, attention_mask: Tensor | None) -> Tensor:
    """(B, S) mask of the kept tokens; outputs of another make (a bare tuple) are taken as full of tokens."""
    mask = getattr(encoder_outputs, "attention_mask", None)
    if mask is None and len(encoder_outputs) > 1 and encoder_outputs[1].dim() == 2:
        mask = encoder_outputs[1]
    memory = encoder_outputs[0]
    return torch.ones(memory.shape[:2], dtype=torch.int64, device=memory.device) if mask is None else mask


def token_loss(logits_BTV: Tensor, labels_BT: Tensor, num_items: int | Tensor | None) -> Tensor:
    """Cross entropy summed in float32 over labels that are not -100, over `num_items` or their number, at least 1."""
    summed = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    if num_items is None:
        num_items = (labels_BT != IGNORED_LABEL).sum().clamp(min=1)
    return summed / num_items


AutoConfig.register(TranspoolerConfig.model_type, TranspoolerConfig, exist_ok=True)
AutoModel.register(TranspoolerConfig, TranspoolerModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(TranspoolerConfig, TranspoolerForConditionalGeneration, exist_ok=True)

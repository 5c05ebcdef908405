"""The pooling encoder-decoder as a `transformers` model: loss, generation, saving, inspection."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    GenerationMixin,
)
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.utils import ModelOutput, can_return_tuple

from transpooler.model.beams import SharedMemoryGeneration
from transpooler.model.classification import TranspoolerForSequenceClassification
from transpooler.model.config import TranspoolerConfig
from transpooler.model.decoder import TranspoolerDecoder
from transpooler.model.encoder import TranspoolerEncoder, TranspoolerPreTrainedModel
from transpooler.model.grounding import MeanAttention, Trace, averaged, check_single
from transpooler.model.input_checks import describe, refuse_unknown, settle_cache
from transpooler.model.inspection import follow, pooling_statistics, select
from transpooler.model.layers.loss import IGNORED_LABEL, LossPiece, count_items, token_loss
from transpooler.model.ops.schedule import PoolingStage
from transpooler.model.outputs import EncoderOutput, Selection


class TranspoolerModel(TranspoolerPreTrainedModel):
    """Encoder and decoder over shared embeddings, without a language-model head."""

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

    @can_return_tuple
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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """Arguments as BART's. attention_mask (B, N) is always that of the source, even with encoder_outputs.

        `cache` is the newer name of past_key_values.
        """
        refuse_unknown(kwargs, self)
        wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, return_dict=True, **wanted)
        elif isinstance(encoder_outputs, tuple | list):
            encoder_outputs = read_encoder_output(encoder_outputs)
        assert isinstance(encoder_outputs, ModelOutput)
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=find_memory_mask(encoder_outputs, attention_mask, self.encoder.poolers.schedule),
            past_key_values=settle_cache(past_key_values, cache),
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **wanted,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=encoder_outputs.get("hidden_states"),
            encoder_attentions=encoder_outputs.get("attentions"),
        )


class TranspoolerForConditionalGeneration(TranspoolerPreTrainedModel, SharedMemoryGeneration, GenerationMixin):
    """The model to train and to summarize with."""

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}  # noqa: RUF012 (transformers' own convention)

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.model = TranspoolerModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=config.logits_bias)
        self.loss_piece = LossPiece()
        if not config.tied_head:
            self._tied_weights_keys = {}
        self.post_init()

    @can_return_tuple
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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Logits (B, T, vocabulary), and with labels (B, T), -100 = ignored, the loss.

        The loss is the sum of the tokens' cross entropies in float32, divided by num_items_in_batch, or by the number
        of labels (at least 1). In training with activation checkpointing long texts have no logits: the loss is summed
        in pieces. decoder_input_ids default to the labels shifted right. `cache` is the newer name of
        past_key_values; ValueError for arguments out of shape, TypeError for unknown ones.
        """
        refuse_unknown(kwargs, self)
        use_cache = use_cache if labels is None else False
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=settle_cache(past_key_values, cache),
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        loss, logits = self._read_out(outputs.last_hidden_state, labels, num_items_in_batch)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )

    def _read_out(
        self, states: Tensor, labels: Tensor | None, num_items: int | Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Loss and logits, as far as there are any."""
        if labels is not None and self.loss_piece.cuts(states, labels):
            return self.loss_piece.sum_pieces(states, labels, self._logits) / count_items(labels, num_items), None
        logits = self._logits(states)
        return None if labels is None else token_loss(logits, labels, num_items), logits

    def _logits(self, states: Tensor) -> Tensor:
        scale = self.config.logits_scale
        return self.lm_head(states if scale == 1 else states * scale)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Shift labels right, behind decoder_start_token_id; ignored labels become padding."""
        if labels.dim() != 2 or self.config.decoder_start_token_id is None or self.config.pad_token_id is None:
            raise ValueError(
                f"labels: {describe(labels)}; expected int64 (batch, tokens), and a configuration with"
                " decoder_start_token_id and pad_token_id"
            )
        shifted = F.pad(labels[:, :-1], (1, 0), value=self.config.decoder_start_token_id)
        return shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)

    @property
    def stages(self) -> tuple[PoolingStage, ...]:
        """The pooling schedule, at the budget that is kept now."""
        return self.model.encoder.poolers.schedule

    def keep(self, keep: float | None = None) -> None:
        """Keep this many tokens of each document, or below 1 this share, from now on; None: the largest budget.

        Raises ValueError where the last stage cannot keep that.
        """
        self.model.encoder.poolers.keep(keep)

    def follow(self, schedule: Sequence[PoolingStage]) -> None:
        """Pool as `schedule` says from now on; its layers are those of the model's."""
        self.model.encoder.poolers.follow(schedule)

    def explore(self, draw: int) -> None:
        """Draw the noise of exploration from this number from now on; without one it follows torch's generator."""
        self.model.encoder.poolers.explore(draw)

    def select(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Selection:
        """Return which tokens of each document the poolers keep, and with what weight; see `Selection`."""
        return select(self.model.encoder, input_ids, attention_mask)

    @torch.no_grad()
    def trace(self, input_ids: Tensor, written: Tensor) -> Trace:
        """Find what was read for each token of a text that was written about one document.

        input_ids int64 (1, N), written int64 (1, T) -> the cross-attention of the step that chose each token, averaged
        over layers and heads (rows sum to 1), and what the poolers kept.
        """
        check_single(input_ids, written)
        encoded, mean = self.get_encoder()(input_ids, output_pooling=True), MeanAttention()
        layers = cast(Sequence[Any], self.model.decoder.layers)
        others = [layer.self_attention for layer in layers]
        with averaged([layer.cross_attention for layer in layers], mean, dropped=others):
            self.model(
                encoder_outputs=encoded,
                decoder_input_ids=self.prepare_decoder_input_ids_from_labels(written),
                use_cache=False,
                output_attentions=True,
            )
        return Trace(mean.result(), follow(encoded.pooled_stages, torch.ones_like(input_ids).bool()))

    def pooling_statistics(self) -> dict[str, float]:
        """What the poolers did in the last forward pass in training; see `inspection.pooling_statistics`."""
        return pooling_statistics(self.model.encoder.trained_stages)


def read_encoder_output(outputs: Sequence) -> EncoderOutput:
    """Rebuild the encoder's output from a tuple (return_dict=False); its first part with two dimensions is the mask."""
    masks = [part for part in outputs[1:] if isinstance(part, Tensor) and part.dim() == 2]
    return EncoderOutput(last_hidden_state=outputs[0], attention_mask=masks[0] if masks else None)


def find_memory_mask(outputs: ModelOutput, attention_mask: Tensor | None, stages: Sequence[PoolingStage]) -> Tensor:
    """(B, S) mask of the kept tokens. Outputs without a mask follow the source's mask; without that, all are kept."""
    mask, memory = outputs.get("attention_mask"), outputs[0]
    if mask is not None:
        return mask
    if attention_mask is None:
        return torch.ones(memory.shape[:2], dtype=torch.int64, device=memory.device)
    kept_B = attention_mask.bool().sum(1)
    for stage in stages:
        kept_B = stage.slots_of_each(kept_B)
    return (torch.arange(memory.shape[1], device=memory.device) < kept_B[:, None]).long()


AUTO_CLASSES: dict[type, type] = {
    AutoModel: TranspoolerModel,
    AutoModelForSeq2SeqLM: TranspoolerForConditionalGeneration,
    AutoModelForSequenceClassification: TranspoolerForSequenceClassification,
    AutoModelForTextEncoding: TranspoolerEncoder,
}
"""What each Auto class of `transformers` makes of a configuration of ours."""


def register() -> None:
    """Make the Auto classes know the model, as if it were one of `transformers`.

    An export does not: it would hide that its code must be saved along with its weights.
    """
    AutoConfig.register(TranspoolerConfig.model_type, TranspoolerConfig, exist_ok=True)
    for auto_class, model_class in AUTO_CLASSES.items():
        cast(Any, auto_class).register(TranspoolerConfig, model_class, exist_ok=True)


if __name__.startswith("transpooler."):
    register()

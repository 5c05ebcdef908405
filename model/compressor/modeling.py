"""The compressor: a document's slots, between prompts, as input embeddings of a stock causal language model.

B batch, N source tokens, S slots, T target tokens, E the reader's width.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from transpooler.model.compressor.config import CompressorConfig
from transpooler.model.compressor.encoder import CompressorEncoder, CompressorPreTrainedModel
from transpooler.model.compressor.hosted import eager_view
from transpooler.model.grounding import MeanAttention, Trace, averaged, check_single
from transpooler.model.inspection import follow, pooling_statistics, select
from transpooler.model.layers.loss import IGNORED_LABEL, token_loss
from transpooler.model.ops.schedule import PoolingStage
from transpooler.model.outputs import EncoderOutput, Selection


class CompressorForConditionalGeneration(CompressorPreTrainedModel):
    """The model to train and to summarize with; its parts are the encoder and the reader, a stock model."""

    def __init__(
        self, config: CompressorConfig, encoder: CompressorEncoder | None = None, reader: PreTrainedModel | None = None
    ) -> None:
        """`encoder` and `reader` are taken as they are, where they are given."""
        super().__init__(config)
        self.encoder = encoder or CompressorEncoder(config)
        self.reader: Any = reader or AutoModelForCausalLM.from_config(config.reader, dtype=config.reader.dtype)
        if encoder is None or reader is None:
            self.post_init()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        self.reader.tie_weights(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.reader.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.reader.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, vocabulary) of the target tokens given those before them, and the loss.

        input_ids int64 (B, N), attention_mask (B, N); labels (B, T), -100 = ignored, at the end of a row. The loss is
        the sum of the tokens' cross entropies in float32, divided by num_items_in_batch, or by the number of labels.
        Without labels the logits are those of the first target token, T = 1.
        """
        embeddings, mask = self.prompt_embeddings(input_ids, attention_mask)
        num_targets = 1
        if labels is not None:
            num_targets = labels.shape[1]
            read = labels[:, :-1]
            written = self.get_input_embeddings()(read.clamp(min=0)).to(embeddings.dtype)
            embeddings = torch.cat([embeddings, written], dim=1)
            mask = torch.cat([mask, (read != IGNORED_LABEL).long()], dim=1)
        outputs = self.reader(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=num_targets,
        )
        loss = None if labels is None else token_loss(outputs.logits, labels, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=outputs.logits)

    def prompt_embeddings(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what the reader reads of documents, (B, L, E), and its mask, int64 (B, L): prefix, slots, prompt.

        Padding stands on the left, so that windows and positions count real tokens alone. Any engine that takes
        embeddings as a prompt can continue from the rows where the mask is 1.
        """
        return self._wrap(self.encoder(input_ids, attention_mask))

    def _wrap(self, encoded: EncoderOutput) -> tuple[Tensor, Tensor]:
        """Slots between prefix and prompt, padding on the left."""
        slots, mask = cast(Tensor, encoded.last_hidden_state), cast(Tensor, encoded.attention_mask)
        parts = [
            self._embed(self.config.prefix_ids, slots),
            slots,
            self._embed(self.config.prompt_ids, slots),
        ]
        masks = [mask.new_ones(part.shape[:2]) if part is not slots else mask for part in parts]
        embeddings, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)
        order_BL = mask.sort(dim=1, stable=True).indices
        return embeddings.gather(1, order_BL[..., None].expand_as(embeddings)), mask.gather(1, order_BL)

    def _embed(self, ids: list[int] | tuple[int, ...], like: Tensor) -> Tensor:
        """(B, len(ids), E): the reader's own embeddings of a text that all documents share."""
        embedded = self.get_input_embeddings()(torch.tensor(list(ids), dtype=torch.int64, device=like.device))
        return embedded.to(like.dtype).expand(len(like), -1, -1)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """What the reader writes about each document; arguments and results as those of `transformers`' generate.

        The sequences hold the new tokens alone.
        """
        embeddings, mask = self.prompt_embeddings(input_ids, attention_mask)
        return self.reader.generate(inputs_embeds=embeddings, attention_mask=mask, **kwargs)

    @property
    def generation_config(self) -> GenerationConfig:
        """The reader's."""
        return self.reader.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | None) -> None:
        if "reader" in self._modules and value is not None:
            self.reader.generation_config = value

    @property
    def stages(self) -> tuple[PoolingStage, ...]:
        """The pooling schedule, at the budget that is kept now."""
        return self.encoder.poolers.schedule

    def keep(self, keep: float | None = None) -> None:
        """Keep this many tokens of each document, or below 1 this share, from now on; None: the largest budget.

        Raises ValueError where the last stage cannot keep that.
        """
        self.encoder.poolers.keep(keep)

    def follow(self, schedule: Sequence[PoolingStage]) -> None:
        """Pool as `schedule` says from now on; its layers are those of the model's."""
        self.encoder.poolers.follow(schedule)

    def explore(self, draw: int) -> None:
        """Draw the noise of exploration from this number from now on; without one it follows torch's generator."""
        self.encoder.poolers.explore(draw)

    def select(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Selection:
        """Return which tokens of each document the poolers keep, and with what weight; see `Selection`."""
        return select(cast(Any, self.encoder), input_ids, attention_mask)

    @torch.no_grad()
    def trace(self, input_ids: Tensor, written: Tensor) -> Trace:
        """Find what was read for each token of a text that was written about one document.

        input_ids int64 (1, N), written int64 (1, T) -> the reader's attention to the slots in the step that chose each
        token, averaged over layers and heads (what prompt and text got is left out), and what the poolers kept.
        """
        check_single(input_ids, written)
        encoded = self.encoder(input_ids, output_pooling=True)
        prompt, _ = self._wrap(encoded)
        embeddings = torch.cat([prompt, self.get_input_embeddings()(written[:, :-1]).to(prompt.dtype)], dim=1)
        first, last = len(self.config.prefix_ids), prompt.shape[1] - len(self.config.prompt_ids)
        mean = MeanAttention(queries=slice(prompt.shape[1] - 1, None), keys=slice(first, last))
        reader: Any = eager_view(self.reader)  # no other attention gives weights
        with averaged([layer.self_attn for layer in reader.get_decoder().layers], mean):
            reader(inputs_embeds=embeddings, use_cache=False)
        return Trace(mean.result(), follow(encoded.pooled_stages, torch.ones_like(input_ids).bool()))

    def pooling_statistics(self) -> dict[str, float]:
        """What the poolers did in the last forward pass; see `inspection.pooling_statistics`."""
        return pooling_statistics(self.encoder.trained_stages)

"""The encoder of a compressor: stock layers over blocks, poolers between them, an adapter into the reader's width.

B batch, N source tokens, D the encoder's width, E the reader's, P packed tokens (see `layout`), S slots.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, initialization

from transpooler.model.compressor.config import CompressorConfig
from transpooler.model.compressor.hosted import host, run_layers
from transpooler.model.input_checks import check_mask
from transpooler.model.layers.context_parallel import share_of
from transpooler.model.layout import Layout
from transpooler.model.outputs import EncoderOutput, PooledStage
from transpooler.model.pooler import Pooler, Poolers, Scorer, keys_for, pool_packed

LOGIT_STD = 2.0
"""Of the first scores' logits over normalised tokens: enough that most pairs are decided, and few scores saturate."""


class CompressorPreTrainedModel(PreTrainedModel):
    """What the encoder and the whole compressor share as `transformers` models."""

    config: CompressorConfig
    config_class = CompressorConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = [Pooler.__name__]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Scorer):
            std = self.config.scorer_init_std
            initialization.normal_(module.weight, std=module.in_features**-0.5 * LOGIT_STD if std is None else std)
        if getattr(module, "starts_at_zero", False):
            initialization.zeros_(cast(Tensor, module.weight))


class Adapter(nn.Module):
    """Norm, linear, GELU, linear: from the encoder's width to the reader's (End-to-End Context Compression, 2026).

    Where embeddings are carried the last map starts at zero, so that the slots start as mixtures of embeddings.
    """

    def __init__(self, dim: int, out_dim: int, starts_at_zero: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.fc_in, self.fc_out = nn.Linear(dim, out_dim), nn.Linear(out_dim, out_dim)
        self.fc_out.starts_at_zero = starts_at_zero  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)."""
        return self.fc_out(F.gelu(self.fc_in(self.norm(x))))


class CompressorEncoder(CompressorPreTrainedModel):
    """Turns documents into a few embeddings that a causal language model reads in place of their tokens."""

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__(config)
        stock = config.encoder
        self.stock = host(stock, config.causal)
        width = stock.hidden_size
        shared: dict[str, Any] = {"base": config.pooling_base, "exploration": float(config.exploration_noise)}
        self.poolers = Poolers(config.stages, lambda stage: Pooler(stage, width, **shared, norm=nn.RMSNorm(width)))
        self.adapter = Adapter(stock.hidden_size, config.reader.hidden_size, config.carry_embeddings)
        self.trained_stages: tuple[PooledStage, ...] = ()
        """What the stages did in the last forward pass in training, for statistics alone."""
        self.post_init()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"trained_stages": ()}  # copies and pickles carry no batch

    def get_input_embeddings(self) -> nn.Module:
        return self.stock.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.stock.set_input_embeddings(value)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_pooling: bool = False
    ) -> EncoderOutput:
        """input_ids int64 (B, N), attention_mask (B, N), 0 = padding -> slots (B, S, E), filled ones first.

        output_pooling adds what each stage did.
        """
        check_mask("attention_mask", attention_mask, input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        layout, at_P = Layout.from_mask(mask.bool(), self.config.block_size)
        ids_P = input_ids.flatten().index_select(0, at_P)
        positions_P = layout.positions()
        if (share := share_of(layout)) is not None:
            positions_P = layout.documents.to_tokens(share.own_positions())
        x = self.get_input_embeddings()(ids_P)
        carried = x if self.config.carry_embeddings else None
        keys_B = keys_for(self.poolers, ids_P, layout, positions_P, share)
        stages: list[PooledStage] = []
        done = 0
        for stage in self.poolers.schedule:
            x = run_layers(self.stock, done + 1, stage.after_layer, x, layout)
            done = stage.after_layer
            pooler = cast(Pooler, self.poolers[str(done)])
            is_last = len(stages) + 1 == len(self.poolers)
            pooled = pool_packed(
                pooler, x, layout, positions_P, self.config.block_size, carried, keys_B, share=share, is_last=is_last
            )
            x, layout, positions_P, carried = pooled.x_PD, pooled.layout, pooled.positions_P, pooled.carried_PE
            stages.append(pooled.stage)
            share = pooled.share
        if self.training:
            self.trained_stages = tuple(stages)
        x = run_layers(self.stock, done + 1, self.stock.config.num_hidden_layers, x, layout)
        slots = self.adapter(cast(nn.Module, self.stock.norm)(x))
        return EncoderOutput(
            last_hidden_state=layout.to_memory(slots if carried is None else carried + slots),
            attention_mask=layout.document_mask.long(),
            positions=layout.documents.to_rows(positions_P),
            pooled_stages=tuple(stages) if output_pooling else None,
        )

"""The blockwise encoder with its pooling schedule.

B batch, N source tokens, D width, P packed tokens (see `layout`); after a stage, S slots.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.utils import can_return_tuple

from transpooler.model.config import TranspoolerConfig
from transpooler.model.input_checks import check_inputs, check_mask, refuse_unknown
from transpooler.model.layers.attention import CosSin
from transpooler.model.layers.context_parallel import share_of
from transpooler.model.layers.embedder import Embedder
from transpooler.model.layers.norms import FinalNorm
from transpooler.model.layers.positions import RelativeBias, add_bias, rotary
from transpooler.model.layers.streaming import run_in_pieces
from transpooler.model.layers.transformer import DecoderLayer, EncoderLayer
from transpooler.model.layout import Layout, Piece
from transpooler.model.outputs import EncoderOutput, PooledStage
from transpooler.model.pooler import Pooler, Poolers, Scorer, closes_stack, encoder_pooler, keys_for, pool_packed

OTHER_TIED_NAMES = r"^(lm_head|(model\.)?decoder\.embed_tokens)\.weight$"
"""Of the embeddings, besides `shared.weight` and the encoder's own."""


class TranspoolerPreTrainedModel(PreTrainedModel):
    """What the encoder, the decoder and the whole model share as `transformers` models."""

    config: TranspoolerConfig
    config_class = TranspoolerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = [EncoderLayer.__name__, DecoderLayer.__name__, Pooler.__name__]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.head_width = config.architecture.head_width  # kept: torch.compile cannot trace what makes an Architecture

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Scorer) and self.config.scorer_init_std is not None:
            initialization.normal_(module.weight, std=self.config.scorer_init_std)

    @classmethod
    def from_pretrained(
        cls, *args, key_mapping: dict[str, str] | None = None, output_loading_info: bool = False, **kwargs
    ):
        """As in `transformers`; finds tied embeddings under whichever of their names the folder stores them."""

        def load(mapping: dict[str, str] | None) -> Any:
            return super(TranspoolerPreTrainedModel, cls).from_pretrained(
                *args, key_mapping=mapping, output_loading_info=True, **kwargs
            )

        model, found = load(key_mapping)
        table = next(name for name, each in model.named_parameters() if each is model.get_input_embeddings().weight)
        if table in found["missing_keys"] and model.config.tie_word_embeddings:
            model, found = load({**(key_mapping or {}), OTHER_TIED_NAMES: table})
        # The library keeps the mapping; save_pretrained would undo it and write the names of the whole model.
        model.__dict__.pop("_weight_conversions", None)
        return (model, found) if output_loading_info else model

    def save_pretrained(self, *args, **kwargs):
        """As in `transformers`. The package's own classes save no code, so config.json must not name any."""
        if __name__.startswith("transpooler."):
            self.config.__dict__.pop("auto_map", None)
        return super().save_pretrained(*args, **kwargs)

    def cos_sin(self, positions: Tensor, x: Tensor) -> CosSin | None:
        """Return what `positions.rotary` gives for the attention heads, if the positions are rotary."""
        if self.config.positions != "rotary":
            return None
        return rotary(positions, self.head_width, x.dtype)


class EncoderOnlyModel(TranspoolerPreTrainedModel):
    """A model without a decoder; its `from_pretrained` also reads folders of the whole model."""

    encoder_prefix = ""
    """What the names of the encoder's weights begin with."""
    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\.", r"^lm_head\."]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, *args, key_mapping: dict[str, str] | None = None, **kwargs):
        names = {r"^(model\.)?encoder\.": "", r"^(model\.)?shared\.": "embed_tokens."}
        mapping = {whole: cls.encoder_prefix + own for whole, own in names.items()} | (key_mapping or {})
        return super().from_pretrained(*args, key_mapping=mapping, **kwargs)


class TranspoolerEncoder(EncoderOnlyModel):
    """Turns documents into the few token representations that matter; alone it serves retrieval and classification."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embedder = Embedder(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        stages = config.architecture.pooling
        self.poolers = Poolers(stages, partial(encoder_pooler, config))
        relative = config.positions == "relative"
        self.relative_bias = RelativeBias(config, config.encoder_layers, bidirectional=True) if relative else None
        self.final_norm = FinalNorm(config)
        self.norm_is_last = not any(closes_stack(config, stage) for stage in stages)
        self.trained_stages: tuple[PooledStage, ...] = ()
        """What the stages did in the last forward pass in training, for statistics alone."""
        self.post_init()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"trained_stages": ()}  # copies and pickles carry no batch

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_pooling: bool = False,
        **kwargs,
    ) -> EncoderOutput:
        """input_ids int64 (B, N) or inputs_embeds (B, N, D); attention_mask (B, N), 0 = padding, on either side.

        output_pooling adds what each stage did.
        """
        refuse_unknown(kwargs, self)
        given = check_inputs(input_ids, inputs_embeds, self.config)
        check_mask("attention_mask", attention_mask, given)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        keep_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        flat, layout, positions_P = self._pack(given, attention_mask)
        if (share := share_of(layout)) is not None:
            positions_P = layout.documents.to_tokens(share.own_positions())
        keys_B = keys_for(self.poolers, flat, layout, positions_P, share)
        hidden_states: list[Tensor] | None = [] if keep_all else None
        attentions: list[Tensor | None] | None = [] if output_attentions else None
        stages: list[PooledStage] = []
        x, done, views = flat, 0, self._views(layout)
        for last in self._span_ends():
            x = self._run_layers((done, last), x, views[done % 2], positions_P, hidden_states, attentions)
            if str(last) in self.poolers:
                pooler = cast(Pooler, self.poolers[str(last)])
                is_last, block_size = len(stages) + 1 == len(self.poolers), self.config.block_size
                pooled = pool_packed(
                    pooler, x, layout, positions_P, block_size, keys_B=keys_B, share=share, is_last=is_last
                )
                x, layout, positions_P, share = pooled.x_PD, pooled.layout, pooled.positions_P, pooled.share
                views = self._views(layout)
                stages.append(pooled.stage)
            done = last
        if self.training:
            self.trained_stages = tuple(stages)
        memory = layout.to_memory(self.final_norm(x) if self.norm_is_last else x)
        return EncoderOutput(
            last_hidden_state=memory,
            hidden_states=None if hidden_states is None else (*hidden_states, memory),
            attentions=None if attentions is None else cast(tuple[Tensor, ...], tuple(attentions)),
            attention_mask=layout.document_mask.long(),
            positions=layout.documents.to_rows(positions_P),
            pooled_stages=tuple(stages) if output_pooling else None,
        )

    def _views(self, layout: Layout) -> tuple[Layout, Layout]:
        """The layout as even layers (from 0) see it, and as odd ones do."""
        return layout, layout.staggered() if self.config.stagger_blocks else layout

    def _span_ends(self) -> list[int]:
        """Where layers that run together end: before a pooler, and, if blocks are staggered, after each layer."""
        each = range(1, len(self.layers) + 1) if self.config.stagger_blocks else ()
        return sorted({*map(int, self.poolers.keys()), len(self.layers), *each})

    def _run_layers(
        self,
        span: tuple[int, int],
        x: Tensor,
        layout: Layout,
        positions_P: Tensor,
        hidden_states: list[Tensor] | None,
        attentions: list[Tensor | None] | None,
    ) -> Tensor:
        """Layers [first, last) of packed tokens (P, D), the first of all of ids (P,), too; notes what is wanted."""
        first, last = span
        noting = hidden_states is not None or attentions is not None

        def run(x_PD: Tensor, tokens: slice, part: Layout | Piece) -> Tensor:
            at_P = positions_P[tokens]
            if not first:
                x_PD = self._embed(x_PD, at_P)
            pooled = any(int(after) <= first for after in self.poolers)
            masks = _Masks(self.relative_bias, part, at_P, unpooled=not pooled)
            for number in range(first, last):
                if hidden_states is not None:
                    hidden_states.append(layout.documents.to_rows(x_PD))
                    # Continue from the tensor that is returned, so that callers can differentiate with respect to it.
                    x_PD = layout.documents.to_tokens(hidden_states[-1])
                mask, cos_sin = masks.of_layer(number), self.cos_sin(at_P, x_PD)
                x_PD, weights = self.layers[number](x_PD, part, mask, cos_sin, attentions is not None)
                if attentions is not None:
                    attentions.append(weights)
            return self.final_norm(x_PD) if last == len(self.layers) and not self.norm_is_last else x_PD

        return run(x, slice(None), layout) if noting else run_in_pieces(run, layout, x, last - first)

    def _embed(self, given: Tensor, positions_P: Tensor) -> Tensor:
        """Ids (P,) or embeddings (P, D) -> what the first layer reads."""
        embeddings = given if given.is_floating_point() else self.embed_tokens(given)
        if self.config.block_positions == "block" and self.config.block_size is not None:
            positions_P = positions_P % self.config.block_size
        return self.embedder(embeddings, positions_P)

    def _pack(self, given: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Layout, Tensor]:
        """Return the real tokens (P,) or (P, D), their layout, and their positions (P,), padding not counted."""
        batch, num_tokens = given.shape[:2]
        block, flat = self.config.block_size, given.flatten(0, 1)
        if attention_mask is None:
            layout = Layout([num_tokens] * batch, block, given.device)
        else:
            layout, at_P = Layout.from_mask(attention_mask.bool(), block)
            flat = flat.index_select(0, at_P)
        return flat, layout, layout.positions()


class _Masks:
    """The attention masks of the layers between two stages: the layout's, or that and the layers' relative biases."""

    def __init__(self, bias: RelativeBias | None, layout: Layout | Piece, positions_P: Tensor, unpooled: bool) -> None:
        """`unpooled`: the positions of a block follow one another, so that one row serves all."""
        self.bias, self.mask = bias, layout.block_mask
        self.shared: Tensor | None = None
        if bias is not None:
            one_row = torch.arange(layout.block, device=positions_P.device)[None]
            positions_Rm = one_row if unpooled else layout.blocks.to_rows(positions_P)
            self.buckets = bias.buckets(positions_Rm, positions_Rm)

    def of_layer(self, layer: int) -> Tensor | None:
        if self.bias is None:
            return self.mask
        if self.shared is not None:
            return self.shared
        mask = add_bias(self.bias(self.buckets, layer), self.mask)
        if len(self.bias.tables) == 1:
            self.shared = mask
        return mask

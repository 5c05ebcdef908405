"""Stock layers of a causal language model, run over the blocks of a document, a few layers at a time."""

import copy
from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from transpooler.model.layers.streaming import run_in_pieces
from transpooler.model.layout import Layout, Piece


def host(config: PreTrainedConfig, causal: bool) -> PreTrainedModel:
    """The stock model of `config` without its head; `causal` False lets all tokens of a block see one another."""
    config = copy.deepcopy(config)
    config.is_causal = causal  # transformers' own masks follow it
    model = AutoModel.from_config(config, dtype=config.dtype)
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = causal
    return model


def eager_view(model: PreTrainedModel) -> PreTrainedModel:
    """A view of the model that shares its weights and computes attention step by step, whatever the model does.

    Settings and hooks are its own: other threads may compute with the model meanwhile.
    """
    twins: dict[int, nn.Module] = {}
    configs: dict[int, PreTrainedConfig] = {}

    def view(module: Any) -> Any:
        if id(module) in twins:
            return twins[id(module)]
        twin = twins[id(module)] = copy.copy(module)
        twin.__dict__ |= {
            name: value.copy()
            for name, value in module.__dict__.items()
            if name.endswith("_hooks") and isinstance(value, dict)
        }
        if isinstance(config := module.__dict__.get("config"), PreTrainedConfig):
            if id(config) not in configs:
                configs[id(config)] = copy.deepcopy(config)
                configs[id(config)]._attn_implementation = "eager"
            twin.config = configs[id(config)]
        twin._modules = {name: None if child is None else view(child) for name, child in module._modules.items()}
        return twin

    return cast(PreTrainedModel, view(model))


def run_layers(model: PreTrainedModel, first: int, last: int, x_PD: Tensor, layout: Layout) -> Tensor:
    """Layers `first` to `last` (1-based, inclusive) of a stock model on packed tokens (P, D), block by block.

    The stock model's own forward pass runs, with these layers alone: masks, positions (from 0 in every block) and
    whatever else its family needs are its own. The final norm is left out.
    """
    if first > last:
        return x_PD
    part_of_model = _part(model, first - 1, last)

    def run(x_PD: Tensor, _: slice, part: Layout | Piece) -> Tensor:
        rows = part.blocks.to_rows(x_PD)
        mask = None if part.block_mask is None else part.block_mask[:, 0, 0].long()
        out = part_of_model(inputs_embeds=rows, attention_mask=mask, use_cache=False)
        return part.blocks.to_tokens(out.last_hidden_state)

    return run_in_pieces(run, layout, x_PD, last - first + 1)


def _part(model: PreTrainedModel, start: int, stop: int) -> PreTrainedModel:
    """A view of the model with the layers [start, stop), which it shares, and no final norm. It owns nothing."""
    part = copy.copy(model)
    part.__dict__ |= {name: OrderedDict() for name in model.__dict__ if name.endswith("_hooks")}
    layers = list(model.layers)[start:stop]  # type: ignore[arg-type]
    part._modules = model._modules | {"layers": nn.ModuleList(layers), "norm": nn.Identity()}
    part.config = copy.copy(model.config)
    part.config.num_hidden_layers = stop - start
    if (kinds := getattr(model.config, "layer_types", None)) is not None:
        part.config.layer_types = list(kinds)[start:stop]
    return part

"""Low-rank adaptation (LoRA, Hu et al. 2021) through `peft`: factors beside linear maps, merged into them at export.

In training the map x.q_proj holds q_proj.base_layer.weight, which is frozen, and q_proj.lora_A.default.weight and
q_proj.lora_B.default.weight.
"""

import difflib
import re
import zlib
from collections import Counter
from fnmatch import fnmatchcase
from importlib.util import find_spec

import torch
from torch import nn

from transpooler.common import UserError, list_some
from transpooler.trainer.config.stages import LoraConfig


def check_lora(settings: LoraConfig | None) -> None:
    """UserError where factors are asked for and `peft` is not installed."""
    if settings is not None and find_spec("peft") is None:
        raise UserError("train.lora is set, which needs peft; pip install 'transpooler[lora]'")


def add_lora(model: nn.Module, settings: LoraConfig, seed: int) -> None:
    """Put factors beside the linear maps that `settings.targets` name; they change nothing before they are trained.

    The factors depend only on `seed` and the map's name. UserError where a pattern names no linear map, or one whose
    weight serves elsewhere, too.
    """
    check_lora(settings)
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    chosen = _find_targets(model, settings)
    with torch.random.fork_rng():
        config = PeftConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules="|".join(re.escape(name) for name in chosen),
        )
        inject_adapter_in_model(config, model)
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                torch.manual_seed(zlib.crc32(f"{seed}/{name}/lora".encode()))
                module.reset_lora_parameters("default", True)
    model.__dict__.pop("peft_config", None)  # would make `transformers` save factors instead of a model
    model.train()


def merge_lora(model: nn.Module) -> None:
    """Add the factors' products to the weights and leave nothing else of them."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())


def _find_targets(model: nn.Module, settings: LoraConfig) -> list[str]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    chosen: dict[str, None] = {}
    for pattern in settings.targets:
        found = [name for name in linear if fnmatchcase(name, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, linear, n=3, cutoff=0.0)
            raise UserError(f"train.lora.targets: no linear map matches {pattern!r}; near to it: {list_some(near)}")
        if tied := [name for name in found if uses[id(linear[name].weight)] > 1]:
            raise UserError(
                f"train.lora.targets: {pattern!r} matches {list_some(tied)}, whose weight is that of the embeddings, "
                "too, so nothing can be merged into it; leave it out"
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)

"""Checks of a model's inputs. Each ValueError names the argument, its value and what was expected.

Values are read only on CPUs: on a GPU the host would have to wait for them.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from transpooler.model.config import TranspoolerConfig
from transpooler.model.ops.soft_topk.argument_checks import values_are_checked


def check_inputs(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, config: TranspoolerConfig, prefix: str = ""
) -> Tensor:
    """Return whichever of token ids (B, N) and embeddings (B, N, D) was given; N is at least 1."""
    if (input_ids is None) == (inputs_embeds is None):
        number = "neither" if input_ids is None else "both"
        raise ValueError(f"{prefix}input_ids, {prefix}inputs_embeds: {number} given; expected exactly one of them")
    if inputs_embeds is not None:
        if not inputs_embeds.is_floating_point() or inputs_embeds.shape[2:] != (config.d_model,):
            raise ValueError(
                f"{prefix}inputs_embeds: {describe(inputs_embeds)}; expected floating (batch, tokens, {config.d_model})"
            )
        given, name = inputs_embeds, f"{prefix}inputs_embeds"
    else:
        assert input_ids is not None
        if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{prefix}input_ids: {describe(input_ids)}; expected int64 (batch, tokens)")
        given, name = input_ids, f"{prefix}input_ids"
    if 0 in given.shape[:2]:
        raise ValueError(f"{name}: {describe(given)}; expected at least 1 document of at least 1 token")
    if input_ids is not None and input_ids.device.type == "cpu" and values_are_checked(input_ids):
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= config.vocab_size:
            found = low if low < 0 else high
            raise ValueError(f"{name}: contains {found}; expected token ids in 0..{config.vocab_size - 1}")
    return given


NEUTRAL = frozenset(("return_dict", "use_cache", "cache_position", "labels"))
"""What transformers hands on whether or not there is a use for it: `generate` gives the encoder a whole batch."""


def refuse_unknown(arguments: dict[str, Any], owner: object) -> None:
    """TypeError for a keyword argument that nobody reads, such as a misspelt one; those that are None pass."""
    for name, value in arguments.items():
        if value is not None and name not in NEUTRAL:
            raise TypeError(f"{type(owner).__name__}.forward() got an unexpected keyword argument {name!r}")


def settle_cache(past_key_values: Any, cache: Any) -> EncoderDecoderCache | None:
    """The cache under whichever name it comes: `cache` since transformers 5.24, `past_key_values` before.

    A cache of one kind, such as a DynamicCache that a user made, becomes that of the self-attention.
    """
    found = past_key_values if cache is None else cache
    if found is None or isinstance(found, EncoderDecoderCache):
        return found
    return EncoderDecoderCache(found, DynamicCache())


def check_mask(name: str, mask: Tensor | None, given: Tensor) -> None:
    """Check that a mask has the shape (B, N) of `given` (B, N, ...)."""
    if mask is not None and mask.shape != given.shape[:2]:
        raise ValueError(f"{name}: {describe(mask)}; expected {tuple(given.shape[:2])}, as the tokens that it is for")


def describe(tensor: Tensor) -> str:
    """Such as "int64 (2, 40)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

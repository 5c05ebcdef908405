"""Layers that are computed again in the backward pass instead of keeping their activations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_activations(model: nn.Module, kind: str, settings: dict[str, Any]) -> None:
    """Let torch or DeepSpeed (`kind`) run every encoder layer, pooler and decoder layer in training.

    `settings` is DeepSpeed's configuration. `transformers` calls the function that is set here with the layer's forward
    and its arguments.
    """
    if kind == "torch":
        checkpoint: Callable = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    else:
        import deepspeed

        deepspeed.checkpointing.configure(None, deepspeed_config=settings)
        checkpoint = deepspeed.checkpointing.checkpoint
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            own = checkpoint
            if kind == "deepspeed":
                trains = any(parameter.requires_grad for parameter in module.parameters())
                own = partial(_run_in_deepspeed, checkpoint, trains)
            module.gradient_checkpointing = True
            setattr(module, "_gradient_checkpointing_func", own)  # noqa: B010  # not declared there


def _run_in_deepspeed(checkpoint: Callable, trains: bool, function: Callable, *arguments: Any) -> Any:
    """Run a layer in DeepSpeed's checkpoint, which takes tensors alone and turns named tuples into bare ones.

    `trains`: whether the layer has parameters that are trained.
    """
    # Views, because DeepSpeed may empty the tensors that it is given, and all decoder layers read the same memory.
    tensors = [item.view_as(item) for item in arguments if isinstance(item, Tensor)]
    if trains and torch.is_grad_enabled() and not any(tensor.requires_grad for tensor in tensors):
        # Above frozen layers alone: it would give a layer gradients only where one of its inputs has one, too.
        next(tensor for tensor in tensors if tensor.is_floating_point()).requires_grad_()
    kind: list[type] = []

    def run(*given: Tensor) -> Any:
        left = iter(given)
        outputs = function(*(next(left) if isinstance(item, Tensor) else item for item in arguments))
        kind[:] = [type(outputs)]
        return outputs

    outputs = checkpoint(run, *tensors)
    return kind[0]._make(outputs) if hasattr(kind[0], "_make") else outputs

"""AdamW's parameter groups and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices decay; norms, biases and embeddings do not; scorers have a learning rate of their own.

    Each group carries `lr_scale`, its learning rate as a multiple of the schedule's.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[str, list[Tensor]] = {"decay": [], "no_decay": [], "scorer": []}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or id(parameter) in embeddings
        groups["scorer" if "scorer" in name.split(".") else "no_decay" if plain else "decay"].append(parameter)
    scales = {"scorer": config.scorer_learning_rate_scale}
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if name == "decay" else 0.0,
            "lr": config.learning_rate * scales.get(name, 1.0),
            "lr_scale": scales.get(name, 1.0),
        }
        for name, parameters in groups.items()
        if parameters
    ]


def learning_rate(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """Learning rate of the 0-based optimizer step: linear warm-up from 0, then the schedule, then its final value."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    if config.schedule == "constant":
        return config.learning_rate
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else (1 - done) ** config.polynomial_power
    floor = config.final_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * left)


def set_learning_rate(groups: Iterable[dict[str, Any]], value: float) -> None:
    """Give every group its multiple of `value`."""
    for group in groups:
        group["lr"] = value * group["lr_scale"]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves a step out when a gradient is not finite, as DeepSpeed's ZeRO optimizers do.

    DeepSpeed reads `overflow` after the step. For stage 0 only, where all ranks hold the same gradients.
    """

    overflow = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        self.overflow = not bool(norms.isfinite().all())
        if not self.overflow:
            super().step(closure)

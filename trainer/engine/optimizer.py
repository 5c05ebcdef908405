"""AdamW's parameter groups and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from transpooler.trainer.config.root import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for the optimizer: matrices decay; norms, biases and embeddings do not; scorers have a learning rate of
    their own; with Muon, so do the matrices.

    Each group carries `lr_scale`, its learning rate as a multiple of the schedule's; with Muon, each group and each
    parameter `use_muon`.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[str, list[Tensor]] = {"decay": [], "no_decay": [], "scorer": [], "muon": []}
    for name, parameter in model.named_parameters():
        # Under zero.Init a rank's part has no shape of its own; DeepSpeed remembers the whole one.
        plain = len(getattr(parameter, "ds_shape", parameter.shape)) < 2 or id(parameter) in embeddings
        kind = "scorer" if "scorer" in name.split(".") else "no_decay" if plain else "decay"
        if kind == "decay" and config.name == "muon" and not name.startswith("lm_head"):
            kind = "muon"
        setattr(parameter, "use_muon", kind == "muon")  # noqa: B010  # where ZeRO looks for what to orthogonalize
        groups[kind].append(parameter)
    scales = {"scorer": config.scorer_learning_rate_scale, "muon": config.muon_learning_rate / config.learning_rate}
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if name in ("decay", "muon") else 0.0,
            "lr": config.learning_rate * scales.get(name, 1.0),
            "lr_scale": scales.get(name, 1.0),
            **({"use_muon": name == "muon"} if config.name == "muon" else {}),
        }
        for name, parameters in groups.items()
        if parameters
    ]


def learning_rate(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """Learning rate of the 0-based optimizer step: linear warm-up from 0, then the schedule, then its final value."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    falls_from = total_steps - config.decay_steps if config.schedule == "wsd" else config.warmup_steps
    done = min(1.0, max(0.0, (step - falls_from) / max(1, total_steps - falls_from)))
    power = config.polynomial_power if config.schedule == "polynomial" else 1.0
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else (1 - done) ** power
    floor = config.final_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * left)


def set_learning_rate(groups: Iterable[dict[str, Any]], value: float) -> None:
    """Give every group its multiple of `value`."""
    for group in groups:
        group["lr"] = value * group["lr_scale"]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips, and leaves a step out when a gradient is not finite, as DeepSpeed's ZeRO optimizers do.

    For stage 0 only, where all ranks hold the same gradients and DeepSpeed does neither. It reads `overflow` after the
    step; `grad_norm` is the global norm before clipping.
    """

    overflow = False
    grad_norm = 0.0

    def __init__(self, groups: Any, *, max_grad_norm: float, **kwargs: Any) -> None:
        super().__init__(groups, **kwargs)
        self.max_grad_norm = max_grad_norm or math.inf

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = float(nn.utils.get_total_norm([p.grad for p in parameters]))
        self.overflow = not math.isfinite(self.grad_norm)
        if not self.overflow:
            nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, torch.tensor(self.grad_norm))
            super().step(closure)

"""The optimizers: how each is built and how it groups the parameters; the learning rate as a function of the step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.config.optimizer import OptimizerConfig
from transpooler.trainer.engine.compiled_ops import load_operator

Group = dict[str, Any]
NamedParameters = dict[str, Tensor]


def build_optimizer(model: nn.Module, settings: OptimizerConfig, engine: EngineConfig) -> torch.optim.Optimizer:
    """The optimizer that is asked for, over `parameter_groups`; compiles DeepSpeed's operator where it needs one."""
    method = _method(settings, engine)
    if method.operator is not None:
        load_operator(method.operator)
    return method.build(parameter_groups(model, settings), settings, engine)


def operator_of(settings: OptimizerConfig, engine: EngineConfig) -> str | None:
    """Name of the DeepSpeed operator that the optimizer is compiled from, or None."""
    return _method(settings, engine).operator


def parameter_groups(model: nn.Module, settings: OptimizerConfig) -> list[Group]:
    """Groups for the optimizer: matrices decay; norms, biases and embeddings do not; scorers have a learning rate of
    their own; with Muon, so do the matrices of the layers.

    Each group carries `lr_scale`, its learning rate as a multiple of the schedule's; with Muon, each group and each
    parameter `use_muon`.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    kinds: dict[str, NamedParameters] = {"decay": {}, "no_decay": {}, "scorer": {}}
    for name, parameter in model.named_parameters():
        # Under zero.Init a rank's part has no shape of its own; DeepSpeed remembers the whole one.
        plain = len(getattr(parameter, "ds_shape", parameter.shape)) < 2 or id(parameter) in embeddings
        kinds["scorer" if "scorer" in name.split(".") else "no_decay" if plain else "decay"][name] = parameter
    groups = METHODS[settings.name].group(settings, **kinds)
    return [group for group in groups if group["params"]]


def learning_rate(step: int, settings: OptimizerConfig, total_steps: int) -> float:
    """Learning rate of the 0-based optimizer step: linear warm-up from 0, then the schedule, then its final value."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    falls_from = total_steps - settings.decay_steps if settings.schedule == "wsd" else settings.warmup_steps
    done = min(1.0, max(0.0, (step - falls_from) / max(1, total_steps - falls_from)))
    power = settings.polynomial_power if settings.schedule == "polynomial" else 1.0
    left = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else (1 - done) ** power
    floor = settings.final_learning_rate_ratio
    return settings.learning_rate * (floor + (1 - floor) * left)


def set_learning_rate(groups: Iterable[Group], value: float) -> None:
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


def _group(
    settings: OptimizerConfig, parameters: NamedParameters, *, decays: bool = False, scale: float = 1.0
) -> Group:
    return {
        "params": list(parameters.values()),
        "weight_decay": settings.weight_decay if decays else 0.0,
        "lr": settings.learning_rate * scale,
        "lr_scale": scale,
    }


def _group_for_adam(
    settings: OptimizerConfig, decay: NamedParameters, no_decay: NamedParameters, scorer: NamedParameters
) -> list[Group]:
    return [
        _group(settings, decay, decays=True),
        _group(settings, no_decay),
        _group(settings, scorer, scale=settings.scorer_learning_rate_scale),
    ]


def _group_for_muon(
    settings: OptimizerConfig, decay: NamedParameters, no_decay: NamedParameters, scorer: NamedParameters
) -> list[Group]:
    """Muon takes the matrices of the layers. It finds `use_muon` at each group, ZeRO at each parameter."""
    matrices = {name: parameter for name, parameter in decay.items() if not name.startswith("lm_head")}
    others = {name: parameter for name, parameter in decay.items() if name not in matrices}
    muon = _group(settings, matrices, decays=True, scale=settings.muon_learning_rate / settings.learning_rate)
    groups = [
        *({**group, "use_muon": False} for group in _group_for_adam(settings, others, no_decay, scorer)),
        {**muon, "use_muon": True},
    ]
    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
    return groups


def _adam_arguments(settings: OptimizerConfig) -> dict[str, Any]:
    return {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}


def _build_adamw(groups: list[Group], settings: OptimizerConfig, engine: EngineConfig) -> torch.optim.Optimizer:
    arguments = _adam_arguments(settings)
    if not engine.shards_states:
        return GuardedAdamW(groups, max_grad_norm=settings.max_grad_norm, **arguments)
    # ZeRO clips and looks for non-finite gradients itself, and knows stock AdamW only.
    return torch.optim.AdamW(groups, **arguments)


def _build_cpu_adamw(groups: list[Group], settings: OptimizerConfig, engine: EngineConfig) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(groups, adamw_mode=True, **_adam_arguments(settings))


def _build_fused_adamw(groups: list[Group], settings: OptimizerConfig, engine: EngineConfig) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam(groups, adam_w_mode=True, **_adam_arguments(settings))


def _build_muon(groups: list[Group], settings: OptimizerConfig, engine: EngineConfig) -> torch.optim.Optimizer:
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    muon, adam = {"momentum": settings.muon_momentum}, {"betas": settings.betas, "eps": settings.eps}
    return MuonWithAuxAdam([{**(muon if group["use_muon"] else adam), **group} for group in groups])


@dataclass(frozen=True, kw_only=True)
class OptimizerMethod:
    """How to make an optimizer."""

    build: Callable[[list[Group], OptimizerConfig, EngineConfig], torch.optim.Optimizer]
    group: Callable[..., list[Group]] = _group_for_adam
    """From the settings and the parameters that decay, that do not, and of scorers to the groups."""
    operator: str | None = None
    """DeepSpeed's name of the operator that must be compiled for it."""
    offloaded: "OptimizerMethod | None" = None
    """What takes its place where engine.offload_optimizer is on."""


METHODS = {
    "adamw": OptimizerMethod(
        build=_build_adamw, offloaded=OptimizerMethod(build=_build_cpu_adamw, operator="cpu_adam")
    ),
    "fused_adamw": OptimizerMethod(build=_build_fused_adamw, operator="fused_adam"),
    "muon": OptimizerMethod(build=_build_muon, group=_group_for_muon),
}
"""Every optimizer by name. What a configuration has to respect about it: trainer/config/optimizer.py."""


def _method(settings: OptimizerConfig, engine: EngineConfig) -> OptimizerMethod:
    method = METHODS[settings.name]
    return method.offloaded if engine.offloads_optimizer and method.offloaded is not None else method

"""The optimizers and how each is built; their parameter groups; the learning rate as a pure function of the step."""

import importlib
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.config.optimizer import GroupConfig, OptimizerConfig
from transpooler.trainer.engine.compiled_ops import load_operator
from transpooler.trainer.engine.parameters import is_match, names_of_parameters


def build_optimizer(model: nn.Module, settings: OptimizerConfig, engine: EngineConfig) -> torch.optim.Optimizer:
    """The optimizer that is asked for, over `parameter_groups`; compiles DeepSpeed's operator where it needs one."""
    method = METHODS[settings.name, engine.offloads_optimizer]
    if method.operator:
        load_operator(method.operator)
    if not method.is_compiled:
        _import_muon_uncompiled()
    return method.build(parameter_groups(model, settings), settings, engine)


def operator_of(settings: OptimizerConfig, engine: EngineConfig) -> str | None:
    """Name of the DeepSpeed operator that must be compiled for the optimizer, or None."""
    return METHODS[settings.name, engine.offloads_optimizer].operator


def parameter_groups(model: nn.Module, settings: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for the optimizer, of the parameters that are trained.

    Matrices decay; norms, biases and embeddings do not; scorers have a learning rate of their own; with Muon, so do the
    matrices of the layers. `settings.groups` divide each of these further. A group carries `lr_scale`, its learning
    rate as a multiple of the schedule's; with Muon, each group and each parameter `use_muon`.
    """
    muon = settings.traits.whole_matrices
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[str, GroupConfig], list[Tensor]] = {}
    for parameter, names in names_of_parameters(model).items():
        # Under zero.Init a rank's part has no shape of its own; DeepSpeed remembers the whole one.
        plain = len(getattr(parameter, "ds_shape", parameter.shape)) < 2 or id(parameter) in embeddings
        kind = "scorer" if "scorer" in names[0].split(".") else "no_decay" if plain else "decay"
        if kind == "decay" and muon and not names[0].startswith("lm_head"):
            kind = "muon"
        setattr(parameter, "use_muon", kind == "muon")  # noqa: B010  # where ZeRO looks for what to orthogonalize
        if parameter.requires_grad:
            own = next((group for group in settings.groups if is_match(names, group.match)), GroupConfig())
            groups.setdefault((kind, own), []).append(parameter)
    kinds = ("decay", "no_decay", "scorer", "muon")
    scales = {
        "scorer": settings.scorer_learning_rate_scale,
        "muon": settings.muon_learning_rate / settings.learning_rate,
    }

    def make_group(kind: str, own: GroupConfig, parameters: list[Tensor]) -> dict[str, Any]:
        rate = settings.learning_rate if own.learning_rate is None else own.learning_rate
        decay = settings.weight_decay if own.weight_decay is None else own.weight_decay
        scale = scales.get(kind, 1.0) * (rate / settings.learning_rate)
        return {
            "params": parameters,
            "weight_decay": decay if kind in ("decay", "muon") else 0.0,
            "lr": settings.learning_rate * scale,
            "lr_scale": scale,
            **({"use_muon": kind == "muon"} if muon else {}),
        }

    return [make_group(*key, groups[key]) for key in sorted(groups, key=lambda key: kinds.index(key[0]))]


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


Builder = Callable[[list[dict[str, Any]], OptimizerConfig, EngineConfig], torch.optim.Optimizer]


def _build_adamw(
    groups: list[dict[str, Any]], settings: OptimizerConfig, engine: EngineConfig
) -> torch.optim.Optimizer:
    if not engine.shards_states:
        return GuardedAdamW(groups, max_grad_norm=settings.max_grad_norm, **_adam(settings))
    # ZeRO clips and looks for non-finite gradients itself, and knows stock AdamW only.
    return torch.optim.AdamW(groups, **_adam(settings))


def _build_muon(groups: list[dict[str, Any]], settings: OptimizerConfig, engine: EngineConfig) -> torch.optim.Optimizer:
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    adam = {"betas": settings.betas, "eps": settings.eps}
    muon = {"momentum": settings.muon_momentum}
    return MuonWithAuxAdam([{**(muon if group["use_muon"] else adam), **group} for group in groups])


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, as every engine of ZeRO does, without torch's compiler: that takes seconds of a start.

    Its functions stay uncompiled in this process, slower and as right, should Muon be used later.
    """
    with mock.patch.dict(os.environ, TORCHDYNAMO_DISABLE="1"):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


def _deepspeed(name: str, **options: Any) -> Builder:
    """Builds one of the Adams in deepspeed.ops.adam."""

    def build(groups: list[dict[str, Any]], settings: OptimizerConfig, _: EngineConfig) -> torch.optim.Optimizer:
        from deepspeed.ops import adam

        return getattr(adam, name)(groups, **options, **_adam(settings))

    return build


def _adam(settings: OptimizerConfig) -> dict[str, Any]:
    return {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}


class OptimizerMethod(NamedTuple):
    """How an optimizer is built, the operator (DeepSpeed's name of it) that must be compiled before, and whether torch
    compiles what it does.
    """

    build: Builder
    operator: str | None = None
    is_compiled: bool = False


METHODS = {
    ("adamw", False): OptimizerMethod(_build_adamw),
    ("adamw", True): OptimizerMethod(_deepspeed("DeepSpeedCPUAdam", adamw_mode=True), "cpu_adam"),
    ("fused_adamw", False): OptimizerMethod(_deepspeed("FusedAdam", adam_w_mode=True), "fused_adam"),
    ("muon", False): OptimizerMethod(_build_muon, is_compiled=True),
}
"""Every optimizer by its name and whether its states are offloaded. What a configuration has to respect about each:
trainer/config/optimizer.py."""

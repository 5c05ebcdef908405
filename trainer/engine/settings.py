"""DeepSpeed's configuration from ours. Imports no DeepSpeed, so that a mistake shows before a rank starts."""

from typing import Any

import torch

from transpooler.common import UserError
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.config.optimizer import OptimizerConfig

NO_CLIPPING = 1e30
"""A bound on the gradient norm that never binds; with it DeepSpeed computes the norm, which metrics show."""

OWNED = {
    "train_batch_size": "data.batch_size",
    "train_micro_batch_size_per_gpu": "engine.micro_batch_size",
    "gradient_accumulation_steps": "data.batch_size and engine.micro_batch_size",
    "gradient_clipping": "optimizer.max_grad_norm",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer.device": "engine.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "engine.nvme_path",
    "zero_optimization.offload_param.device": "engine.offload_parameters",
    "zero_optimization.offload_param.nvme_path": "engine.nvme_path",
    "activation_checkpointing.cpu_checkpointing": "engine.checkpoint_in_cpu",
    "bf16.enabled": "engine.precision",
    "fp16.enabled": "engine.precision",
    "optimizer": "the optimizer section",
    "scheduler": "optimizer.schedule",
}
"""Keys of DeepSpeed's configuration that are ours, and where a user sets them."""


def deepspeed_config(
    engine: EngineConfig, optimizer: OptimizerConfig, num_micro_batches: int, world_size: int
) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, then the user's fragment, which may add keys but change none of ours."""
    ours: dict[str, Any] = {
        "train_batch_size": engine.micro_batch_size * num_micro_batches * world_size,
        "train_micro_batch_size_per_gpu": engine.micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
        # At stage 0 our own optimizer clips, because DeepSpeed would not tell the norm.
        "gradient_clipping": (optimizer.max_grad_norm or NO_CLIPPING) if engine.shards_states else 0.0,
        "zero_optimization": {"stage": engine.zero_stage, **_offload_settings(engine)},
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }
    if optimizer.traits.whole_matrices:
        # reduce_scatter would cut the gradients of matrices.
        ours["zero_optimization"]["reduce_scatter"] = False
    if engine.activation_checkpointing == "deepspeed":
        # Without a GPU the inputs are in the CPU's memory already, and DeepSpeed 0.19 would lose them.
        in_cpu = engine.checkpoint_in_cpu and torch.cuda.is_available()
        ours["activation_checkpointing"] = {"cpu_checkpointing": in_cpu}
    if engine.precision == "bf16":
        ours["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if engine.shards_gradients:
            # At stage 1 DeepSpeed would take its BF16_Optimizer, whose checkpoints its own zero_to_fp32 cannot read.
            ours["data_types"] = {"grad_accum_dtype": "fp32"}
    elif engine.precision == "fp16":
        ours["fp16"] = {"enabled": True}
    return _merge(ours, engine.deepspeed, "")


def _offload_settings(engine: EngineConfig) -> dict[str, Any]:
    places = {"offload_optimizer": engine.offload_optimizer, "offload_param": engine.offload_parameters}
    return {
        name: {"device": place, **({"nvme_path": engine.nvme_path} if place == "nvme" else {})}
        for name, place in places.items()
        if place != "none"
    }


def _merge(ours: dict[str, Any], fragment: dict[str, Any], prefix: str) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in fragment.items():
        path = f"{prefix}{key}"
        if path in OWNED:
            raise UserError(f"engine.deepspeed.{path} is set by {OWNED[path]}; remove it here")
        if isinstance(value, dict):
            inner = ours.get(key)
            merged[key] = _merge(inner if isinstance(inner, dict) else {}, value, f"{path}.")
            continue
        if inside := [owned for owned in OWNED if owned.startswith(f"{path}.")]:
            raise UserError(
                f"engine.deepspeed.{path} is {value!r}, but {inside[0]} is set by {OWNED[inside[0]]}; give a mapping "
                "of other keys"
            )
        merged[key] = value
    return merged

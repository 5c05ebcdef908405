"""DeepSpeed: distributed set-up, its configuration from ours, the engine."""

import logging
import os
import socket
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from trainer.config import Config, EngineConfig
from trainer.optimizer import GuardedAdamW, parameter_groups

NO_CLIPPING = 1e30
"""As a bound on the gradient norm it never binds, but DeepSpeed computes the norm, which metrics show."""


def check_precision(engine: EngineConfig) -> None:
    """UserError where this machine cannot train in the precision asked for."""
    if engine.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("engine.precision is 'fp16', but this machine has no CUDA device; use bf16 or fp32")


def init_distributed(config: Config) -> tuple[int, int]:
    """Join the job that the environment describes (RANK, WORLD_SIZE, ...; alone without it); returns (rank, size)."""
    _prepare_environment()
    import deepspeed

    # DeepSpeed calls collectives by names that newer torch versions deprecate; users can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # The shared-memory collectives serve inference only, and compiling them would cost the first run a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(seconds=config.engine.collective_timeout_s)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(
        dist_backend="nccl" if on_cuda else "gloo", auto_mpi_discovery=True, verbose=False, timeout=timeout
    )
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def create_engine(model: nn.Module, config: Config, num_micro_batches: int, world_size: int) -> Any:
    """Wrap the model and AdamW into a DeepSpeed engine."""
    import deepspeed

    optimizer = config.optimizer
    # Above stage 0 DeepSpeed looks for non-finite gradients itself, and knows stock AdamW only.
    kind = GuardedAdamW if config.engine.zero_stage == 0 else torch.optim.AdamW
    groups = parameter_groups(model, optimizer)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=kind(groups, lr=optimizer.learning_rate, betas=optimizer.betas, eps=optimizer.eps),
        config=deepspeed_config(config, num_micro_batches, world_size),
        dist_init_required=False,
    )
    if config.engine.activation_checkpointing:
        engine.module.gradient_checkpointing_enable({"use_reentrant": False})
    return engine


def deepspeed_config(config: Config, num_micro_batches: int, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, then the user's fragment, which may add keys but change none of ours."""
    engine = config.engine
    ours: dict[str, Any] = {
        "train_batch_size": engine.micro_batch_size * num_micro_batches * world_size,
        "train_micro_batch_size_per_gpu": engine.micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": config.optimizer.max_grad_norm or NO_CLIPPING,
        "zero_optimization": {"stage": engine.zero_stage},
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }
    if engine.precision == "bf16":
        ours["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if engine.zero_stage > 1:
            # At stage 1 DeepSpeed would take its BF16_Optimizer, whose checkpoints its own zero_to_fp32 cannot read.
            ours["data_types"] = {"grad_accum_dtype": "fp32"}
    elif engine.precision == "fp16":
        ours["fp16"] = {"enabled": True}
    return _merged(ours, engine.deepspeed, "")


OWNED = {
    "train_batch_size": "data.batch_size",
    "train_micro_batch_size_per_gpu": "engine.micro_batch_size",
    "gradient_accumulation_steps": "data.batch_size and engine.micro_batch_size",
    "gradient_clipping": "optimizer.max_grad_norm",
    "zero_optimization.stage": "engine.zero_stage",
    "bf16.enabled": "engine.precision",
    "fp16.enabled": "engine.precision",
    "optimizer": "the optimizer section",
    "scheduler": "optimizer.schedule",
}
"""Keys of DeepSpeed's configuration that are ours, and where a user sets them."""


def _merged(ours: dict[str, Any], fragment: dict[str, Any], prefix: str) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in fragment.items():
        path = f"{prefix}{key}"
        if path in OWNED:
            raise UserError(f"engine.deepspeed.{path} is set by {OWNED[path]}; remove it here")
        inner = ours.get(key, {})
        merged[key] = _merged(inner, value, f"{path}.") if isinstance(value, dict) else value
    return merged


def _prepare_environment() -> None:
    """What must be set before deepspeed is imported, and what a job of one process lacks."""
    choose_accelerator()
    if "RANK" not in os.environ and "OMPI_COMM_WORLD_RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(alone)
    os.environ.setdefault("LOCAL_RANK", "0")


def choose_accelerator() -> None:
    """Say what DeepSpeed would find out loudly; before it is imported."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def reduced(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all ranks, in float64."""
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor)
    return tensor.tolist()

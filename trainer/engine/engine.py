"""DeepSpeed: distributed set-up, the engine, weights that are spread over the ranks."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from transpooler.common.errors import UserError
from transpooler.common.net import free_port
from transpooler.trainer.config.root import Config, EngineConfig
from transpooler.trainer.engine.compiled_ops import load_operator, operator_of
from transpooler.trainer.engine.optimizer import GuardedAdamW, parameter_groups
from transpooler.trainer.engine.settings import deepspeed_config

MAX_GRAPHS = 64
"""With engine.compile; torch runs what would be one more uncompiled."""


def check_machine(engine: EngineConfig) -> None:
    """UserError where this machine cannot do what is asked for: fp16 without CUDA, NVMe offload without its op."""
    if engine.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("engine.precision is 'fp16', but this machine has no CUDA device; use bf16 or fp32")
    if "nvme" in (engine.offload_optimizer, engine.offload_parameters):
        if not torch.cuda.is_available():
            raise UserError(
                "engine.offload_* is 'nvme', which hangs in DeepSpeed 0.19 without a CUDA device; use cpu or none"
            )
        choose_accelerator()
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise UserError(
                "engine.offload_* is 'nvme', but DeepSpeed cannot build its async_io op here; install libaio-dev, or "
                "use cpu"
            )


def check_fragment(config: Config, num_micro_batches: int, world_size: int) -> None:
    """UserError where DeepSpeed does not know a key or take a value of engine.deepspeed. Needs `init_distributed`."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(deepspeed_config(config, num_micro_batches, world_size))
    except (ValueError, TypeError, AssertionError) as error:
        found = str(error)
        if hasattr(error, "errors"):  # pydantic's
            found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UserError(f"engine.deepspeed: DeepSpeed does not take it: {' '.join(found.split())}") from error


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
    """Wrap the model and its optimizer into a DeepSpeed engine."""
    import deepspeed

    settings = deepspeed_config(config, num_micro_batches, world_size)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(model, config), config=settings, dist_init_required=False
    )
    if config.engine.activation_checkpointing == "torch":
        _checkpoint_layers(engine.module, partial(torch.utils.checkpoint.checkpoint, use_reentrant=False))
    elif config.engine.activation_checkpointing == "deepspeed":
        deepspeed.checkpointing.configure(None, deepspeed_config=settings)
        _checkpoint_layers(engine.module, partial(_checkpointed, deepspeed.checkpointing.checkpoint))
    if config.engine.compile:
        # A graph for each number of documents, of halving rounds, of whole and broken blocks: more than torch's 8.
        torch._dynamo.config.recompile_limit = max(MAX_GRAPHS, torch._dynamo.config.recompile_limit)
        # Lengths change from batch to batch, and which graph runs must not depend on the lengths seen before a resume.
        engine.module.compile(dynamic=True)
    return engine


def sharded_init(config: Config, num_micro_batches: int, world_size: int) -> AbstractContextManager:
    """In this context a model is built with each module's weights spread over the ranks at once (ZeRO 3 alone)."""
    if config.engine.zero_stage != 3:
        return nullcontext()
    import deepspeed

    settings = deepspeed_config(config, num_micro_batches, world_size)
    return deepspeed.zero.Init(config_dict_or_path=settings)


def gathered(parameters: Sequence[Tensor]) -> AbstractContextManager:
    """In this context the parameters are whole on every rank; what rank 0 wrote into them goes to all at its end."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0)


def _optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer asked for, over our parameter groups."""
    settings, engine = config.optimizer, config.engine
    groups = parameter_groups(model, settings)
    adam: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}
    if settings.name == "muon":
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

        adam.pop("lr")
        own = {True: {"momentum": settings.muon_momentum}, False: adam}
        return MuonWithAuxAdam([{**own[group["use_muon"]], **group} for group in groups])
    if operator := operator_of(config):
        load_operator(operator)
    if engine.offload_optimizer != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **adam)
    if settings.name == "fused_adamw":
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam(groups, adam_w_mode=True, **adam)
    if engine.zero_stage == 0:
        return GuardedAdamW(groups, max_grad_norm=settings.max_grad_norm, **adam)
    # Above stage 0 DeepSpeed clips and looks for non-finite gradients itself, and knows stock AdamW only.
    return torch.optim.AdamW(groups, **adam)


def gradient_norm(engine: Any) -> float:
    """Global norm of the last step's gradients before clipping."""
    if isinstance(engine.optimizer, GuardedAdamW):
        return engine.optimizer.grad_norm
    return float(engine.get_global_grad_norm() or 0.0)


def estimated_states(
    parameters: int, largest_layer: int, stage: int, world_size: int, offload_optimizer: bool, offload_weights: bool
) -> tuple[int, int]:
    """DeepSpeed's estimate of (device, host) bytes for ZeRO 2 and 3 with 16-bit weights, all ranks on one machine."""
    choose_accelerator()
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    if stage == 2:
        host, device = estimate_zero2_model_states_mem_needs(
            parameters, num_gpus_per_node=world_size, cpu_offload=offload_optimizer
        )
        return device, host
    host, device, _ = estimate_zero3_model_states_mem_needs(
        parameters,
        largest_layer,
        num_gpus_per_node=world_size,
        cpu_offload=offload_optimizer,
        cpu_offload_params=offload_weights,
        zero_init=True,
    )
    return device, host


def loss_scale(engine: Any) -> dict[str, float]:
    """fp16's dynamic loss scale, for the metrics; nothing in other precisions."""
    return {"loss_scale": float(engine.optimizer.loss_scale)} if engine.fp16_enabled() else {}


def _layers(model: nn.Module) -> list[Any]:
    """Encoder layers, poolers and decoder layers: what is checkpointed as a whole."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _checkpoint_layers(model: nn.Module, checkpoint: Callable) -> None:
    """Let `checkpoint` run every layer in training, as `transformers` does with torch's."""
    for layer in _layers(model):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = checkpoint


def _checkpointed(checkpoint: Callable, function: Callable, *arguments: Any) -> Any:
    """DeepSpeed's checkpoint of a layer: it takes tensors alone, and gives bare tuples where we have named ones."""
    # Views, since it may empty what it is given, which others still need: all decoder layers read one memory.
    tensors = [item.view_as(item) for item in arguments if isinstance(item, Tensor)]
    kind: list[type] = []

    def run(*given: Tensor) -> Any:
        left = iter(given)
        outputs = function(*(next(left) if isinstance(item, Tensor) else item for item in arguments))
        kind[:] = [type(outputs)]
        return outputs

    outputs = checkpoint(run, *tensors)
    return kind[0]._make(outputs) if hasattr(kind[0], "_make") else outputs


def _prepare_environment() -> None:
    """What must be set before deepspeed is imported, and what a job of one process lacks."""
    choose_accelerator()
    if "RANK" not in os.environ and "OMPI_COMM_WORLD_RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
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

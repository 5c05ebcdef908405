"""DeepSpeed's engine: what it refuses, how it is created, weights that are spread over the ranks."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from transpooler.common import UserError
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.config.optimizer import OptimizerConfig
from transpooler.trainer.engine.activation_checkpointing import checkpoint_activations
from transpooler.trainer.engine.distributed import choose_accelerator
from transpooler.trainer.engine.optimizer import GuardedAdamW, build_optimizer
from transpooler.trainer.engine.protocol import TrainingEngine

MAX_GRAPHS = 64
"""With engine.compile; torch runs what would be one more uncompiled."""


def check_machine(engine: EngineConfig) -> None:
    """UserError where this machine cannot do what is asked for: fp16 without CUDA, NVMe offload without its op."""
    if engine.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("engine.precision is 'fp16', but this machine has no CUDA device; use bf16 or fp32")
    if "nvme" not in (engine.offload_optimizer, engine.offload_parameters):
        return
    if not torch.cuda.is_available():
        raise UserError(
            "engine.offload_* is 'nvme', which hangs in DeepSpeed 0.19 without a CUDA device; use cpu or none"
        )
    choose_accelerator()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        problem = "but DeepSpeed cannot build its async_io op here; install libaio-dev, or use cpu"
        raise UserError(f"engine.offload_* is 'nvme', {problem}")


def check_fragment(settings: dict[str, Any]) -> None:
    """UserError where DeepSpeed does not know a key or take a value of its configuration; ours are right, so it is one
    of engine.deepspeed. Needs `init_distributed`.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(settings)
    except (ValueError, TypeError, AssertionError) as error:
        found = str(error)
        if hasattr(error, "errors"):  # pydantic's
            found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UserError(f"engine.deepspeed: DeepSpeed does not take it: {' '.join(found.split())}") from error


def create_engine(
    model: nn.Module, engine: EngineConfig, optimizer: OptimizerConfig, settings: dict[str, Any]
) -> TrainingEngine:
    """Wrap the model and its optimizer into a DeepSpeed engine; `settings` is DeepSpeed's configuration."""
    import deepspeed

    created, *_ = deepspeed.initialize(
        model=model, optimizer=build_optimizer(model, optimizer, engine), config=settings, dist_init_required=False
    )
    if engine.activation_checkpointing in ("torch", "deepspeed"):
        checkpoint_activations(created.module, engine.activation_checkpointing, settings)
    if engine.compile:
        # A graph for each number of documents, of halving rounds, of whole and broken blocks: more than torch's 8.
        torch._dynamo.config.recompile_limit = max(MAX_GRAPHS, torch._dynamo.config.recompile_limit)
        # Lengths change from batch to batch, and which graph runs must not depend on the lengths seen before a resume.
        created.module.compile(dynamic=True)
    return created


def destroy_engine(engine: TrainingEngine) -> None:
    """Free the memory of an engine that nobody will use again."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    engine.destroy()
    FWD_MODULE_STACK.clear()  # where DeepSpeed 0.19 leaves the model of every engine of stage 3
    # Once it has taken a step, an engine of stage 3 is never collected; so it is made hollow.
    sharded, engine.optimizer = engine.optimizer, None
    for part in (sharded, getattr(sharded, "optimizer", None)):
        if part is not None:
            vars(part).clear()
    for parameter in engine.module.parameters():
        vars(parameter).clear()
        parameter.grad, parameter.data = None, torch.empty(0)


def sharded_init(engine: EngineConfig, settings: dict[str, Any]) -> AbstractContextManager:
    """In this context a model is built with each module's weights spread over the ranks at once (ZeRO 3 alone)."""
    if not engine.shards_weights:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.Init(config_dict_or_path=settings)


def gather_weights(parameters: Sequence[Tensor]) -> AbstractContextManager:
    """In this context the parameters are whole on every rank; at its end all ranks take over what rank 0 wrote."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0)


def gradient_norm(engine: TrainingEngine) -> float:
    """Global norm of the last step's gradients before clipping."""
    if isinstance(engine.optimizer, GuardedAdamW):
        return engine.optimizer.grad_norm
    return float(engine.get_global_grad_norm() or 0.0)


def loss_scale(engine: TrainingEngine) -> dict[str, float]:
    """fp16's dynamic loss scale, for the metrics; nothing in other precisions."""
    return {"loss_scale": float(engine.optimizer.loss_scale)} if engine.fp16_enabled() else {}


def estimate_states(
    parameters: int, largest_layer: int, stage: int, world_size: int, offload_optimizer: bool, offload_weights: bool
) -> tuple[int, int]:
    """DeepSpeed's estimate of (device, host) bytes for ZeRO 2 and 3 with 16-bit weights, all ranks on one machine."""
    choose_accelerator()
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    options = {"num_gpus_per_node": world_size, "cpu_offload": offload_optimizer}
    if stage == 2:
        host, device = estimate_zero2_model_states_mem_needs(parameters, **options)
    else:
        host, device, _ = estimate_zero3_model_states_mem_needs(
            parameters, largest_layer, cpu_offload_params=offload_weights, zero_init=True, **options
        )
    return device, host

"""Joining the other ranks of a job."""

import logging
import os
import warnings
from datetime import timedelta

import torch

from transpooler.common import free_port
from transpooler.model.layers.context_parallel import ContextGroup
from transpooler.trainer.config.engine import EngineConfig


def init_distributed(engine: EngineConfig) -> tuple[int, int]:
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
    timeout = timedelta(seconds=engine.collective_timeout_s)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(
        dist_backend="nccl" if on_cuda else "gloo", auto_mpi_discovery=True, verbose=False, timeout=timeout
    )
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def join_context_group(engine: EngineConfig, rank: int, world_size: int) -> ContextGroup | None:
    """The ranks that share this one's documents: neighbours; None where each has its own. A collective.

    UserError where the ranks make no whole groups.
    """
    size = engine.context_parallel_size
    if engine.data_parallel_size(world_size) == world_size:
        return None
    timeout = timedelta(seconds=engine.collective_timeout_s)
    groups = [
        torch.distributed.new_group(list(range(first, first + size)), timeout=timeout)
        for first in range(0, world_size, size)
    ]
    return ContextGroup(rank % size, size, groups[rank // size])


def choose_accelerator() -> None:
    """Tell DeepSpeed that there is no GPU; call it before DeepSpeed is imported, which would warn about it."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _prepare_environment() -> None:
    """Set what DeepSpeed reads when it is imported, and what a process that no launcher started lacks."""
    choose_accelerator()
    if "RANK" not in os.environ and "OMPI_COMM_WORLD_RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        os.environ.update(alone)
    os.environ.setdefault("LOCAL_RANK", "0")

"""The one way to start ranks in tests: as forks of a process that has imported everything once.

A start costs about a second instead of eight. What a rank runs is a function of a test's module; its assertions fail
the job. Environment variables that torch reads when it is imported come too late: the function sets options instead.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transpooler.common import free_port
from transpooler.launch.ranks.local import rank_environment

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])
DEADLINE_S = 120.0


class Job:
    """The ranks of one job as processes; their output is in `log`."""

    def __init__(self, world_size: int, target: Callable[..., Any], args: Sequence[Any], log: Path) -> None:
        """Each rank runs `target(*args)`; what it raises or returns becomes its exit code."""
        self.log = log
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the fork server inherits it, and imports deepspeed
        environment = rank_environment(world_size) | {
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        self.processes = [
            CONTEXT.Process(
                target=_rank,
                args=(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, str(log), target, tuple(args)),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def kill(self) -> None:
        """SIGKILL to every rank."""
        for process in self.processes:
            process.kill()

    def codes(self, deadline_s: float = DEADLINE_S) -> list[int | None]:
        """Exit codes, when all have ended (minus the signal's number for a killed one)."""
        deadline = time.monotonic() + deadline_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        assert None not in codes, f"still running after {deadline_s} s:\n{self.output()}"
        return codes

    def output(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""


def train(world_size: int, settings: Sequence[str], log: Path, prelude: Callable[..., None] | None = None) -> Job:
    """`transpooler.launch.train SETTINGS` in so many ranks; `prelude`, a function of a module, runs in each before."""
    return Job(world_size, _train, (list(settings), prelude), log)


def command(world_size: int, arguments: Sequence[str], log: Path) -> Job:
    """`transpooler ARGUMENTS` in so many ranks."""
    return Job(world_size, _command, (list(arguments),), log)


def whole_weights(job: Any) -> dict[str, Any]:
    """In a rank, on all at once: copies of the weights of a `trainer.job.Job` by name, whole also under ZeRO 3."""
    from transpooler.trainer.engine.engine import gather_weights

    items = dict(job.engine.module.named_parameters())
    with gather_weights(list(items.values())):
        return {name: value.detach().clone() for name, value in items.items()}


def _command(arguments: list[str]) -> int:
    from transpooler.launch.cli import main

    return main(arguments)


def _train(settings: list[str], prelude: Callable[..., None] | None) -> int:
    from transpooler.launch.train import main

    if prelude is not None:
        prelude()
    return main(settings)


def _rank(environment: dict[str, str], log: str, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(target(*args))

"""Runs independent jobs in this process, in processes of this machine, or on a Ray cluster; results keep the order."""

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from transpooler.common import UserError, die_with_parent

_AHEAD = 2  # jobs in flight for each worker


class Executor:
    """Runs jobs. Processes start with the first call that has several jobs, and are used until `close`."""

    def __init__(self, kind: str, workers: int) -> None:
        self.kind, self.workers = kind, workers
        self._pool: Any = None

    def run(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield `function(*job)` for every job, in order. Only a few jobs are in memory at a time."""
        if self.kind == "ray":
            yield from _run_on_ray(function, jobs)
            return
        iterator = iter(jobs)
        first = list(islice(iterator, 2))
        if self.workers == 1 or (self._pool is None and len(first) < 2):
            for job in chain(first, iterator):
                yield function(*job)
        else:
            yield from self._run_in_processes(function, chain(first, iterator))

    def close(self) -> None:
        """End the processes when their present jobs are done."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _run_in_processes(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool
        from multiprocessing import get_context

        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _start_worker, (os.getpid(),))
        pool = self._pool
        try:
            for future in _start_ahead(lambda job: pool.submit(function, *job), jobs, self.workers):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (out of memory?); run the same command again and it continues, "
                "with fewer prepare.workers or smaller prepare.task_mib"
            ) from error


def _start_worker(parent: int) -> None:
    """Prepare a worker process: `tokenizers` gets one thread, and the worker ends when its parent is killed.

    The pool starts its workers in the thread that submits jobs, which waits for all results: it ends with the process.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    die_with_parent()
    if os.getppid() != parent:  # it was killed before the kernel knew
        os._exit(1)


def _run_on_ray(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise UserError("prepare.executor: ray is not installed; pip install 'transpooler[ray]'") from error
    if not ray.is_initialized():
        # RAY_ADDRESS names a cluster; else one is started here.
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    environment = {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}
    remote = ray.remote(num_cpus=1, runtime_env=environment, max_retries=3)(function)
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    for reference in _start_ahead(lambda job: remote.remote(*job), jobs, workers):
        yield ray.get(reference)


def _start_ahead(start: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield what `start` gives for each job, in order; of the following jobs a few are started already."""
    started: deque[Any] = deque()
    for job in jobs:
        started.append(start(job))
        if len(started) > _AHEAD * workers:
            yield started.popleft()
    yield from started

"""A window of steps under torch.profiler, as a Chrome trace in the run folder (open it in Perfetto)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from transpooler.common import INCOMPLETE_SUFFIX, say
from transpooler.trainer.config.train import TrainConfig
from transpooler.trainer.run_folder import RunFolder


@contextmanager
def profiling(run: Path, settings: TrainConfig, rank: int, first_step: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each step. Rank 0 records train.profile_steps steps on all devices.

    The window begins train.profile_start_step steps after `first_step`; RUN/profile/step<N>.json names its first step.
    A run that ends inside the window writes what it has.
    """
    if rank or not settings.profile_steps:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    schedule = torch.profiler.schedule(
        skip_first=settings.profile_start_step, wait=0, warmup=0, active=settings.profile_steps, repeat=1
    )
    path = RunFolder(run).profile / f"step{first_step + settings.profile_start_step}.json"

    def write(recorded: profile) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        incomplete = path.with_name(path.name + INCOMPLETE_SUFFIX)
        recorded.export_chrome_trace(str(incomplete))
        os.replace(incomplete, path)
        say(f"{path}: trace of {settings.profile_steps} steps; open it in https://ui.perfetto.dev")

    with profile(activities=activities, schedule=schedule, on_trace_ready=write, record_shapes=True) as recorder:
        yield recorder.step

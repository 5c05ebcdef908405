"""Several training ranks on this machine, started by DeepSpeed's own launcher."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from transpooler.common import INTERRUPTED, STOP_SIGNALS, free_port, handle_signals
from transpooler.launch.ranks.watcher import RANK_MODULE

RUNNER = (sys.executable, "-m", "deepspeed.launcher.runner")


def run_ranks(processes: int, arguments: Sequence[str], module: str = RANK_MODULE) -> int:
    """Run `python -m MODULE ARGUMENTS` in `processes` local ranks; returns the first non-zero exit code, else 0.

    SIGTERM and SIGUSR1 go to the ranks themselves, which save a checkpoint and exit with 75; DeepSpeed's launcher
    alone would kill them. Ctrl-C ends everything.
    """
    command = launcher_command(processes, free_port(), ["--module", module, *arguments])
    # A session of its own, so that Ctrl-C reaches this process alone and the launcher's traceback stays unseen.
    launcher = subprocess.Popen(command, env=rank_environment(processes), start_new_session=True)
    try:
        with handle_signals(STOP_SIGNALS, lambda number: _signal_ranks(launcher.pid, module, number)):
            return launcher.wait()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGTERM)
            launcher.wait()


def launcher_command(processes: int, port: int, program: Sequence[str], *, log_level: str = "critical") -> list[str]:
    """The command that starts the ranks on this machine; `program` is --module MODULE or --no_python FILE, and more."""
    return [
        *(*RUNNER, "--log_level", log_level, "--hostfile", os.devnull, "--num_accelerators", str(processes)),
        *("--master_addr", "127.0.0.1", "--master_port", str(port), "--no_local_rank", *program),
    ]


def rank_environment(processes: int) -> dict[str, str]:
    """This environment and what the ranks need: a share of the cores, and the CPU backend where CUDA is missing."""
    environment = dict(os.environ)
    environment["PYTHONSAFEPATH"] = "1"  # what lies in the working directory is not imported
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    if not _has_cuda():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _signal_ranks(launcher_pid: int, module: str, number: int) -> None:
    """Send a signal to the ranks below the launcher: the processes that are `python -u -m MODULE ...`."""
    import psutil

    for process in psutil.Process(launcher_pid).children(recursive=True):
        try:
            if process.cmdline()[2:4] == ["-m", module]:
                process.send_signal(number)
        except psutil.Error:  # it ended meanwhile
            continue

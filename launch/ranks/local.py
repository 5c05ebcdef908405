"""Several training ranks on this machine, started by DeepSpeed's own launcher."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from transpooler.common.exit_codes import INTERRUPTED
from transpooler.common.net import free_port
from transpooler.common.signals import STOP_SIGNALS, handling

RANK_MODULE = "transpooler.launch.train"


def run_ranks(processes: int, arguments: Sequence[str], module: str = RANK_MODULE) -> int:
    """Run `python -m MODULE ARGUMENTS` in `processes` local ranks; returns the first non-zero exit code, else 0.

    SIGTERM and SIGUSR1 go to the ranks themselves, which save a checkpoint and exit with 75; DeepSpeed's launcher
    alone would kill them. Ctrl-C ends everything.
    """
    command = launcher_command(processes, free_port(), arguments, module)
    # A session of its own, so that Ctrl-C reaches us alone and the launcher's traceback stays unseen.
    launcher = subprocess.Popen(command, env=rank_environment(processes), start_new_session=True)
    try:
        with handling(STOP_SIGNALS, lambda number: _signal_ranks(launcher.pid, module, number)):
            return launcher.wait()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGTERM)
            launcher.wait()


def launcher_command(processes: int, port: int, arguments: Sequence[str], module: str = RANK_MODULE) -> list[str]:
    """The command that starts the ranks."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *("--hostfile", os.devnull, "--num_accelerators", str(processes)),
        *("--master_addr", "127.0.0.1", "--master_port", str(port), "--log_level", "critical"),
        *("--no_local_rank", "--module", module, *arguments),
    ]


def rank_environment(processes: int) -> dict[str, str]:
    """This environment plus what the ranks need: a share of the cores, the CPU backend without CUDA."""
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

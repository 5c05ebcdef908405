"""Several training ranks on this machine, started by DeepSpeed's own launcher."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from transpooler.common import (
    INTERRUPTED,
    STOP_SIGNALS,
    die_with_parent,
    free_port,
    handle_signals,
    listens_to,
    say,
)
from transpooler.launch.ranks.watcher import RANK_MODULE

LOOK_EVERY_S = 0.2


def run_ranks(processes: int, arguments: Sequence[str], module: str = RANK_MODULE) -> int:
    """Run `python -m MODULE ARGUMENTS` in `processes` local ranks; returns the first non-zero exit code, else 0.

    SIGTERM and SIGUSR1 go to each rank itself as soon as it listens; it saves a checkpoint and exits with 75.
    DeepSpeed's launcher alone would kill it. Ctrl-C does the same, a second one ends everything. Ranks never outlive
    this process.
    """
    command = launcher_command(processes, free_port(), ["--module", module, *arguments])
    orders: list[int] = []
    told: set[int] = set()
    with handle_signals((*STOP_SIGNALS, signal.SIGINT), orders.append):
        # A session of its own, so that Ctrl-C reaches this process alone.
        launcher = subprocess.Popen(
            command, env=rank_environment(processes), start_new_session=True, preexec_fn=die_with_parent
        )
        try:
            while launcher.poll() is None and orders.count(signal.SIGINT) < 2:
                if orders:
                    if signal.SIGINT in orders and not told:
                        say("interrupted: the ranks save and end; Ctrl-C again ends them at once")
                    number = orders[0] if orders[0] in STOP_SIGNALS else signal.SIGTERM
                    told |= _signal_ranks(launcher.pid, module, number, told)
                time.sleep(LOOK_EVERY_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)  # the ranks, too, where the launcher itself was killed
    code = launcher.wait()
    return INTERRUPTED if signal.SIGINT in orders else code


def launcher_command(processes: int, port: int, program: Sequence[str], *, log_level: str = "critical") -> list[str]:
    """The command that starts the ranks on this machine; `program` is --module MODULE or --no_python FILE, and more.

    It is what DeepSpeed's runner starts on each host; the runner itself ends before the ranks.
    """
    slots = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(processes))}).encode()).decode()
    return [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={slots}", "--log_level", log_level),
        *("--master_addr=127.0.0.1", f"--master_port={port}", "--no_local_rank", *program),
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


def _signal_ranks(launcher_pid: int, module: str, number: int, told: set[int]) -> set[int]:
    """Send a signal to those ranks below the launcher, `python -u -m MODULE ...`, that listen; returns their ids.

    Those in `told` have got it.
    """
    import psutil

    done = set()
    for process in psutil.Process(launcher_pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            is_rank = process.cmdline()[2:4] == ["-m", module] and process.pid not in told
            if is_rank and listens_to(process.pid, number):
                process.send_signal(number)
                done.add(process.pid)
    return done

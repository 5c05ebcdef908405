"""What a process may want to know of itself, and of others."""

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1
LOOK_EVERY_S = 0.5


@contextmanager
def without_collection() -> Iterator[None]:
    """Inside the block no garbage is looked for: a seventh of the time that importing torch and transformers takes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def die_with_parent() -> None:
    """Have the kernel kill this process (SIGKILL) when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_when(is_over: Callable[[], bool]) -> None:
    """Kill this process (SIGKILL) soon after its parent has ended, or `is_over()` has become true, on any system."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and not is_over():
            time.sleep(LOOK_EVERY_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def start_of(pid: int) -> str | None:
    """What tells a process from later ones with its number: when it started; None where it has ended."""
    import psutil

    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]  # in ticks since the start of the system: no clock's step moves it
    except OSError:
        pass
    try:
        return None if Path("/proc/self/stat").exists() else str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def resident_mib(pid: int | None = None) -> float:
    """Resident memory of a process (default: this one) now, in MiB; 0 where it has ended."""
    import psutil

    try:
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def peak_resident_mib() -> float:
    """The most resident memory that this process ever had, in MiB; not less than what its parent had at the start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

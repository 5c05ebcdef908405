"""What a process may want to know of itself, and of its parent."""

import ctypes
import resource
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process (SIGKILL) when the thread that started it ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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

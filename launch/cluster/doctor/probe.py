"""Facts about the host it runs on, as one line of JSON.

    python -m transpooler.launch.cluster.doctor.probe KEY=VALUE...

It imports no torch, so that asking a host takes a fraction of a second. `transpooler launch` runs it over ssh before
any rank starts, and so does `transpooler doctor`.
"""

import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import socket
import sys
import time
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from transpooler.common import free_port, is_free
from transpooler.launch.ranks.identity import addresses

MARK = "transpooler-answer "
"""Begins the line in which a program that runs on another host answers; others may write to its output, too."""
PACKAGES = ("torch", "deepspeed", "transformers", "numpy")


def facts(run: str = "", port: str = "", witness: str = "") -> dict[str, Any]:
    """What all hosts of a job have to agree on, and what each host must have.

    `run` is the run folder, `port` one that should be free here, `witness` a file that all hosts should see.
    """
    folder = next((path for path in (Path(run), *Path(run).parents) if path.is_dir()), Path("/"))
    return {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": _code_hash(),
        "time": time.time(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": num_gpus(),
        "addresses": addresses(),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "port_free": is_free(int(port)) if port else None,
        "a_free_port": free_port(""),
        "witness": Path(witness).is_file() if witness else None,
        "writable": os.access(folder, os.W_OK),
        "disk_free_gib": shutil.disk_usage(folder).free / 2**30,
        "shm_gib": _size_gib("/dev/shm"),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "locked_memory_kib": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "compilers": [name for name in ("g++", "ninja", "nvcc") if _tool(name)],
    }


def print_answer(value: Any) -> None:
    """Print what `read_answers` finds on the host that asked."""
    print(MARK + json.dumps(value), flush=True)


def read_answers(output: str) -> list[Any]:
    """What programs of ours answered, from all of their output."""
    return [json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)]


def num_gpus() -> int:
    """CUDA devices of this host, as the kernel lists them."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if Path("/proc/driver/nvidia").exists() else 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _code_hash() -> str:
    digest = hashlib.sha256()
    for folder in sorted(Path(str(files("transpooler"))).iterdir()):  # in a clone links, which rglob does not follow
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _size_gib(folder: str) -> float:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).total / 2**30
    return 0.0


def _tool(name: str) -> str | None:
    """Path of a program on PATH or beside the interpreter, where pip installs tools."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


if __name__ == "__main__":
    print_answer(facts(**dict(item.split("=", 1) for item in sys.argv[1:])))

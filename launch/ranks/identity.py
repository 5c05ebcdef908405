"""Which rank a process is: RANK, WORLD_SIZE, LOCAL_RANK and the master, from variables of SLURM, OpenMPI or MPICH.

So `srun transpooler train CONFIG` and `mpirun ... transpooler train CONFIG` work as they are; mpi4py is not
needed. Engines that set RANK themselves (DeepSpeed's launcher, torchrun) are left alone.
"""

import re
import socket
import subprocess
import sys
import zlib
from collections.abc import Mapping

from transpooler.common import UserError

MASTER_PORTS = range(20000, 30000)
"""Ports below Linux' ephemeral range, from which a job derives its own if none is given."""
MAX_STEP = 2**32 - 16
"""From here on SLURM numbers batch scripts and interactive shells, which are no ranks."""
MPI_VARIABLES = {
    "OpenMPI": tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}


def rank_identity(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to the environment: no RANK when it is set or no engine is recognised.

    UserError where MPI ranks on several hosts lack MASTER_ADDR.
    """
    if "RANK" in environment:
        found: dict[str, str] = {}
    elif _is_slurm_task(environment):
        found = _slurm_identity(environment)
    else:
        found = _mpi_identity(environment)
    master = {**found, **environment}.get("MASTER_ADDR")
    if master and "GLOO_SOCKET_IFNAME" not in environment and (interface := interface_towards(master)):
        found["GLOO_SOCKET_IFNAME"] = interface
    return found


def interface_towards(address: str) -> str | None:
    """The network interface through which this host reaches `address`; None for loopback or if there is no route.

    Gloo by itself takes the address that the host's name resolves to, which is 127.0.1.1 on many systems.
    """
    try:
        mine = address_towards(address)
    except OSError:
        return None
    found = next((name for name, ip in addresses().items() if ip == mine), None)
    return None if found == "lo" else found


def addresses() -> dict[str, str]:
    """IPv4 address of each network interface that has one."""
    import psutil

    found: dict[str, str] = {}
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET:
                found.setdefault(name, entry.address)
    return found


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < MAX_STEP and "SLURM_PROCID" in environment


def _slurm_identity(environment: Mapping[str, str]) -> dict[str, str]:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "1")
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_per_node(tasks)[int(environment["SLURM_NODEID"])]),
    }
    if "MASTER_ADDR" not in environment:
        found["MASTER_ADDR"] = first_hostname(nodes)
    if "MASTER_PORT" not in environment:
        found["MASTER_PORT"] = port_of(f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}")
    return found


def _mpi_identity(environment: Mapping[str, str]) -> dict[str, str]:
    for engine, names in MPI_VARIABLES.items():
        if names[0] not in environment:
            continue
        rank, size, local_rank, local_size = (environment.get(name, "0") for name in names)
        found = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size}
        if "MASTER_ADDR" not in environment:
            if local_size != size:
                raise UserError(
                    f"{engine} started ranks on several hosts, but MASTER_ADDR is not set; pass the first host's "
                    "address on (-x MASTER_ADDR=... with OpenMPI, -genv MASTER_ADDR ... with MPICH)"
                )
            found["MASTER_ADDR"] = "127.0.0.1"
        if "MASTER_PORT" not in environment:
            found["MASTER_PORT"] = port_of(environment.get("PMIX_NAMESPACE", environment.get("PMI_PORT", "")))
        return found
    return {}


def port_of(name: str) -> str:
    """A port that all ranks of the job `name` agree on."""
    return str(MASTER_PORTS[zlib.crc32(name.encode()) % len(MASTER_PORTS)])


def tasks_per_node(text: str) -> list[int]:
    """SLURM's `2(x3),1` as [2, 2, 2, 1]."""
    counts = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeat or 1)
    return counts


def first_hostname(nodes: str) -> str:
    """First name of a SLURM node list such as `n[03-10],m1`."""
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        name, _, rest = nodes.partition("[")
        return name.split(",")[0] if "," in name or not rest else name + re.split(r"[-,\]]", rest)[0]


def address_towards(address: str) -> str:
    """The address of this host that it uses to reach `address`; OSError if it cannot."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends no packet
        return str(probe.getsockname()[0])


if __name__ == "__main__":
    print(address_towards(sys.argv[1]))

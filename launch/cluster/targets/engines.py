"""How each engine starts the ranks. All start the same rendered rank.sh once per rank; see launch.cluster.environment.

DeepSpeed's runner serves `local` and `ssh` (pdsh). torchrun is started on each host through pdsh and meets at a c10d
rendezvous. OpenMPI, MPICH and srun only start processes: no MPI is used by training, and mpi4py is not needed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from transpooler.common.errors import UserError
from transpooler.launch.cluster.attempt_plan import Job, Plan
from transpooler.launch.cluster.doctor.preflight import require
from transpooler.launch.cluster.environment import python, run_folder, script, working_directory
from transpooler.launch.cluster.hosts import num_ranks
from transpooler.launch.ranks.watcher import ATTEMPT, BIND_CORES, LOGS
from transpooler.trainer.run_folder import RunFolder

RUNNER = (sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "error")
FAN_OUT = "1024"
"""pdsh would start only 32 hosts at a time, and the job would wait for the rest for ever."""


def plan(target: str, job: Job) -> Plan:
    """The attempt of `job` through the engine of `target`."""
    return TARGETS[target](job)


def local(job: Job) -> Plan:
    """DeepSpeed's launcher on this machine."""
    address, port = job.master or ("127.0.0.1", 29500)
    ranks = ("--hostfile", os.devnull, "--num_accelerators", str(num_ranks(job.hosts)))
    master = ("--master_addr", address, "--master_port", str(port))
    rank = ("--no_local_rank", "--no_python", str(job.folder / "rank.sh"))
    return _plan("local", job, (*RUNNER, *ranks, *master, *rank), {})


def ssh(job: Job) -> Plan:
    """DeepSpeed's runner with pdsh over a hostfile."""
    require("pdsh", "pdsh", "ssh")
    address, port = _master(job)
    hostfile = job.folder / "hostfile"
    where = ("--hostfile", str(hostfile), "--launcher", "pdsh", "--force_multi", "--no_ssh_check")
    more = (f"--launcher_args={' '.join(job.config.cluster.launcher_options)}",)
    master = ("--master_addr", address, "--master_port", str(port))
    rank = ("--no_local_rank", "--no_python", str(job.folder / "rank.sh"))
    text = "".join(f"{host.name} slots={host.slots}\n" for host in job.hosts)
    return _plan("ssh", job, (*RUNNER, *where, *more, *master, *rank), {hostfile: text})


def torchrun(job: Job) -> Plan:
    """torchrun on each host, started by pdsh, with a c10d rendezvous on the first host."""
    require("pdsh", "pdsh", "torchrun")
    address, port = _master(job)
    slots = {host.slots for host in job.hosts}
    if len(slots) > 1:
        raise UserError("target torchrun needs equal slots on all hosts; set cluster.processes_per_node")
    start = [
        *(python(job.config), "-m", "torch.distributed.run", "--nnodes", str(len(job.hosts))),
        *("--nproc-per-node", str(slots.pop()), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{port}"),
        *("--rdzv-id", f"{run_folder(job.config).name}-{job.folder.name}", "--max-restarts", "0"),
        *job.config.cluster.launcher_options,
        *("--no-python", str(job.folder / "rank.sh")),
    ]
    text = script(job.config, job.variables, start, "Started once per host by pdsh.")
    # Its own address, as the others reach it: torchrun alone would hand out the host's name, which may not resolve.
    own = f"local_address=$({python(job.config)} -m transpooler.launch.ranks.identity {address})\nexec "
    text = text.replace("exec ", own, 1).replace("--rdzv-id", '--local-addr "$local_address" --rdzv-id', 1)
    names = ",".join(host.name for host in job.hosts)
    host_script = job.folder / "host.sh"
    return _plan(
        "torchrun", job, ("pdsh", "-S", "-R", "ssh", "-f", FAN_OUT, "-w", names, str(host_script)), {host_script: text}
    )


def openmpi(job: Job) -> Plan:
    """OpenMPI's mpirun over ssh."""
    cluster, hostfile = job.config.cluster, job.folder / "hostfile"
    command = [
        mpirun(job, "Open MPI", ("mpirun.openmpi", "mpirun"), "openmpi-bin", "openmpi"),
        "--hostfile",
        str(hostfile),
    ]
    command += ["-np", str(num_ranks(job.hosts)), "--map-by", "slot", "--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    if cluster.interface:
        command += ["--mca", "oob_tcp_if_include", cluster.interface, "--mca", "btl_tcp_if_include", cluster.interface]
    command += [*cluster.launcher_options, str(job.folder / "rank.sh")]
    return _plan(
        "openmpi",
        _with_master(job),
        tuple(command),
        {hostfile: "".join(f"{host.name} slots={host.slots}\n" for host in job.hosts)},
    )


def mpich(job: Job) -> Plan:
    """MPICH's mpiexec (Hydra) over ssh."""
    cluster, hostfile = job.config.cluster, job.folder / "hostfile"
    command = [
        mpirun(job, "HYDRA", ("mpiexec.hydra", "mpirun.mpich", "mpiexec", "mpirun"), "mpich", "mpich"),
        "-f",
        str(hostfile),
    ]
    command += ["-n", str(num_ranks(job.hosts)), "-launcher", "ssh"]
    if cluster.interface:
        command += ["-iface", cluster.interface]
    command += [*cluster.launcher_options, str(job.folder / "rank.sh")]
    return _plan(
        "mpich",
        _with_master(job),
        tuple(command),
        {hostfile: "".join(f"{host.name}:{host.slots}\n" for host in job.hosts)},
    )


def srun(job: Job) -> Plan:
    """srun inside a SLURM allocation: ranks and master come from SLURM's variables (launch.discovery)."""
    require("srun", "slurm-client", "slurm")
    slots = {host.slots for host in job.hosts}
    if len(slots) > 1:
        raise UserError("target slurm needs the same number of ranks on each node; set cluster.processes_per_node")
    command = ["srun", "--nodes", str(len(job.hosts)), "--ntasks", str(num_ranks(job.hosts))]
    command += ["--ntasks-per-node", str(slots.pop()), "--nodelist", ",".join(host.name for host in job.hosts)]
    command += ["--kill-on-bad-exit=1", "--export=ALL", *job.config.cluster.slurm.srun_options]
    return _plan("slurm", job, (*command, str(job.folder / "rank.sh")), {})


TARGETS: dict[str, Callable[[Job], Plan]] = {
    "local": local,
    "ssh": ssh,
    "torchrun": torchrun,
    "openmpi": openmpi,
    "mpich": mpich,
    "slurm": srun,
}


def mpirun(job: Job, maker: str, names: tuple[str, ...], package: str, target: str) -> str:
    """Path of the mpirun of one MPI (a machine may have several); UserError where it is not there."""
    given = job.config.cluster.mpirun
    for name in (given,) if given else names:
        path = shutil.which(name)
        if path and maker in subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout:
            return path
    wrong = f"cluster.mpirun {given} is not that of {maker}" if given else f"no mpirun of {maker} is installed here"
    raise UserError(f"target {target}: {wrong}; install it (Debian: {package}) or set cluster.mpirun=PATH")


def _plan(target: str, job: Job, command: tuple[str, ...], files: dict[Path, str]) -> Plan:
    variables = dict(job.variables) | {ATTEMPT: str(job.folder), LOGS: str(RunFolder(run_folder(job.config)).logs)}
    if job.config.cluster.bind_cores:
        variables[BIND_CORES] = "1"
    rank = script(
        job.config,
        variables,
        [python(job.config), "-u", "-m", "transpooler.launch.ranks.watcher", *job.settings],
        f"Started once per rank by the engine of target {target}.",
    )
    return Plan(
        target=target,
        hosts=job.hosts,
        command=command,
        files={job.folder / "rank.sh": rank, **files},
        variables=variables,
        directory=working_directory(job.config),
    )


def _master(job: Job) -> tuple[str, int]:
    return job.master or (job.hosts[0].name, job.config.cluster.master_port or 29500)


def _with_master(job: Job) -> Job:
    """For engines that know no master: its address and port become variables of the ranks."""
    from dataclasses import replace

    address, port = _master(job)
    return replace(job, variables={**job.variables, "MASTER_ADDR": address, "MASTER_PORT": str(port)})

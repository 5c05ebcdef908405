"""The launchers of OpenMPI and MPICH. They only start processes: training uses no MPI, and mpi4py is not needed."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from transpooler.common import UserError
from transpooler.launch.cluster.attempt_plan import AttemptPlan, AttemptRequest
from transpooler.launch.cluster.hosts import num_ranks
from transpooler.launch.cluster.targets.base import Target, master_or_first


@dataclass(frozen=True, kw_only=True)
class Mpi(Target):
    """One MPI. {words} in braces are filled in."""

    name: str
    about: str
    maker: str
    """What `--version` says. A machine may have several MPIs whose mpirun is first on PATH by chance."""
    programs: tuple[str, ...]
    package: str
    """Of Debian."""
    options: tuple[str, ...]
    interface_options: tuple[str, ...]
    """Added where cluster.interface is set."""
    root_options: tuple[str, ...] = ()
    """Added for root."""
    host_line: str
    """A line of the hostfile."""

    def plan(self, request: AttemptRequest) -> AttemptPlan:
        cluster, hostfile = request.config.cluster, request.folder / "hostfile"
        options = [
            *self.options,
            *(self.root_options if os.geteuid() == 0 else ()),
            *(self.interface_options if cluster.interface else ()),
        ]
        words = {"hostfile": hostfile, "ranks": num_ranks(request.hosts), "interface": cluster.interface}
        command = [self._program(cluster.mpirun), *(option.format_map(words) for option in options)]
        command += [*cluster.launcher_options, str(request.rank_script)]
        lines = "".join(self.host_line.format(name=host.name, slots=host.slots) for host in request.hosts)
        address, port = master_or_first(request)
        master = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}  # an MPI knows no master
        return self.make_plan(request, command, {hostfile: lines}, master)

    def _program(self, given: str | None) -> str:
        """Path of this MPI's mpirun; UserError where it is not installed or `given` belongs to another MPI."""
        for name in (given,) if given else self.programs:
            path = shutil.which(name)
            if path and self.maker in _version_of(path):
                return path
        wrong = (
            f"cluster.mpirun {given} is not that of {self.maker}"
            if given
            else f"no mpirun of {self.maker} is installed here"
        )
        raise UserError(f"target {self.name}: {wrong}; install it (Debian: {self.package}) or set cluster.mpirun=PATH")


OPENMPI = Mpi(
    name="openmpi",
    about="hosts of a hostfile: OpenMPI's mpirun",
    maker="Open MPI",
    programs=("mpirun.openmpi", "mpirun"),
    package="openmpi-bin",
    options=("--hostfile", "{hostfile}", "-np", "{ranks}", "--map-by", "slot", "--bind-to", "none"),
    interface_options=("--mca", "oob_tcp_if_include", "{interface}", "--mca", "btl_tcp_if_include", "{interface}"),
    root_options=("--allow-run-as-root",),
    host_line="{name} slots={slots}\n",
)
MPICH = Mpi(
    name="mpich",
    about="hosts of a hostfile: MPICH's mpiexec",
    maker="HYDRA",
    programs=("mpiexec.hydra", "mpirun.mpich", "mpiexec", "mpirun"),
    package="mpich",
    options=("-f", "{hostfile}", "-n", "{ranks}", "-launcher", "ssh"),
    interface_options=("-iface", "{interface}"),
    host_line="{name}:{slots}\n",
)


def _version_of(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout

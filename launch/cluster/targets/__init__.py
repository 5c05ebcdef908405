"""The engines that start ranks: a file each, and a row in TARGETS."""

from transpooler.launch.cluster.targets.base import Target
from transpooler.launch.cluster.targets.kubernetes import Kubernetes
from transpooler.launch.cluster.targets.local import Local
from transpooler.launch.cluster.targets.mpi import MPICH, OPENMPI
from transpooler.launch.cluster.targets.slurm import Slurm
from transpooler.launch.cluster.targets.ssh import Ssh
from transpooler.launch.cluster.targets.torchrun import Torchrun

TARGETS: dict[str, Target] = {
    target.name: target for target in (Local(), Ssh(), Torchrun(), OPENMPI, MPICH, Slurm(), Kubernetes())
}
"""What `transpooler launch TARGET` may name."""

"""The `cluster:` section: where and how `transpooler launch` starts the ranks of a run. Training itself ignores it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from transpooler.common import at_least, between, one_of

PASSED_ON = (
    "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_*", "NCCL_*", "GLOO_*", "UCX_*", "FI_*", "DS_ACCELERATOR",
    "HF_*", "WANDB_*", "TRITON_*", "TRANSPOOLER_*", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """The batch job of target slurm. What is special about a site goes into options, srun_options and prologue."""

    partition: str | None = None
    account: str | None = None
    time: str | float | None = None
    """Time limit: 12h, 90m, 1d12h, HH:MM:SS, or seconds (as train.max_time, not minutes as for sbatch); anything else,
    such as D-HH:MM:SS, goes to sbatch as it is."""
    gpus_per_node: int | None = at_least(0, None)
    signal_before_end_s: int = at_least(1, 120)
    """The job gets a signal this long before its time limit, to finish the step, save and requeue."""
    requeue: str = one_of(("scontrol", "exit_code", "none"), "scontrol")
    """How a job that has to go on later comes back: scontrol (the job requeues itself), exit_code (it ends with 75,
    and the site's RequeueExit=75 does it), or none."""
    array: str | None = None
    """Job array, such as 0-4; run names may use ${oc.env:SLURM_ARRAY_TASK_ID}. "0-4%1" chains five runs."""
    dependency: str | None = None
    """As sbatch takes it, such as afterok:123."""
    options: tuple[str, ...] = ()
    """More #SBATCH options, verbatim; "hetjob" starts the next component of a heterogeneous job."""
    srun_options: tuple[str, ...] = ()
    """More options of srun, verbatim."""
    prologue: tuple[str, ...] = ()
    """Shell lines that run on the first host before training, such as `module load cuda`."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Options that sbatch or srun would not take as such."""
        if isinstance(self.time, float) and self.time <= 0:
            yield "time", f"is {self.time:g}; must be positive"
        for name in ("options", "srun_options"):
            for item in getattr(self, name):
                if not item.startswith("-") and item != "hetjob":
                    yield name, f"holds {item!r}; write options as on the command line, such as --constraint=a100"


@dataclass(frozen=True, kw_only=True)
class KubernetesConfig:
    """The manifest of target kubernetes."""

    kind: str = one_of(("jobset", "trainjob"), "jobset")
    """jobset (jobset.x-k8s.io/v1alpha2) or trainjob (Kubeflow Trainer v2, trainer.kubeflow.org/v1alpha1)."""
    image: str = ""
    """Container image with Python, transpooler and its dependencies."""
    name: str = "transpooler"
    namespace: str = "default"
    runtime: str = "torch-distributed"
    """ClusterTrainingRuntime of a trainjob."""
    gpus_per_node: int = at_least(0, 0)
    cpus_per_node: str | None = None
    memory_per_node: str | None = None
    """Such as 64Gi."""
    volume_claim: str | None = None
    """PersistentVolumeClaim (ReadWriteMany) that holds shards and runs."""
    mount_path: str = "/data"
    shared_memory: str = "8Gi"
    """Size of /dev/shm."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A name that Kubernetes would not take."""
        if not self.name.replace("-", "").isalnum() or self.name != self.name.lower() or len(self.name) > 40:
            yield "name", f"is {self.name!r}; use up to 40 lower-case letters, digits and dashes"


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Hosts, environment and supervision of `transpooler launch`."""

    hostfile: str | None = None
    """Lines `host slots=N`: hosts and ranks on each (ssh, torchrun, openmpi, mpich)."""
    include: tuple[str, ...] = ()
    """Only these hosts of the hostfile."""
    exclude: tuple[str, ...] = ()
    """Not these hosts."""
    nodes: int = at_least(1, 1)
    """Number of hosts where no hostfile says so (slurm, kubernetes)."""
    processes_per_node: int | None = at_least(1, None)
    """Ranks on each host; null = slots of the hostfile, else the host's GPUs, else 1."""
    master_address: str | None = None
    """Address of the first host that the others reach; null = its address on `interface`, else its name's."""
    master_port: int | None = between(1024, 65535, None)
    """TCP port of the rendezvous on the first host; null = a free one."""
    interface: str | None = None
    """Network interface of collectives on every host, such as ib0 or eth0; null = the one that leads to the master."""
    bind_cores: bool = True
    """Give each rank of a host its own share of the cores."""
    working_directory: str | None = None
    """Folder in which the ranks start, on every host; null = the current one."""
    activate: str | None = None
    """Shell line that activates the environment on each host; null = the environment of this Python, same path."""
    pass_environment: tuple[str, ...] = PASSED_ON
    """Variables of this shell that ranks get, by name or pattern. Nothing else is passed on."""
    environment: dict[str, str] = field(default_factory=dict)
    """More variables for the ranks; these win."""
    elastic: bool = False
    """Continue with fewer hosts, at the same data.batch_size, when a host had to be left out."""
    min_nodes: int = at_least(1, 1)
    """The fewest hosts with which an elastic job continues."""
    max_restarts: int = at_least(0, 10)
    """Restarts in a row without a new checkpoint in between; then the launcher gives up."""
    restart_delay_s: float = at_least(0, 5.0)
    """Wait before the first restart; doubles with each further one without progress."""
    max_restart_delay_s: float = at_least(0, 300.0)
    host_failures: int = at_least(1, 2)
    """A host that failed this often is left out."""
    hang_timeout_s: float = at_least(0, 2400.0)
    """A job without a sign of progress (metrics, output) for this long is restarted; 0 = never. Above
    engine.collective_timeout_s, so that ranks can still tell what they waited for."""
    heartbeat_timeout_s: float = at_least(5, 120.0)
    """A rank that gives no sign of life, or is found stopped, for this long counts as lost."""
    stop_grace_s: float = at_least(0, 300.0)
    """How long ranks may take to save after a signal before they are killed."""
    mpirun: str | None = None
    """Path of mpirun / mpiexec; null = found by name."""
    launcher_options: tuple[str, ...] = ()
    """More options of the engine that starts the ranks (pdsh, torchrun, mpirun, mpiexec), verbatim."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Variables whose names no shell would take."""
        for key in self.environment:
            if not key.isidentifier():
                yield "environment", f"has the key {key!r}, which is no name of a variable"

"""The parts of `transpooler launch` that need no host: hostfiles, who am I, scripts, plans, decisions."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT
from transpooler.common import UserError
from transpooler.launch.cluster import environment
from transpooler.launch.cluster.attempt import Outcome
from transpooler.launch.cluster.decisions import GIVEN_UP, History, decide
from transpooler.launch.cluster.doctor import preflight
from transpooler.launch.cluster.doctor.probe import facts
from transpooler.launch.cluster.hosts import Host, choose_hosts, read_hostfile
from transpooler.launch.cluster.supervisor import Supervisor
from transpooler.launch.cluster.targets import TARGETS
from transpooler.launch.ranks.identity import first_hostname, port_of, rank_identity, tasks_per_node
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.config.cluster import ClusterConfig

HOSTS = [Host("a", 2), Host("b", 2), Host("c", 2)]


def config_of(*settings: str) -> Config:
    return load_config([], settings)


# Hosts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=2\na slots=1\n", "hosts:2: host a is there twice"),
        ("a slots=two\n", "hosts:1: host a has slots=two"),
        ("a slots=0\n", "hosts:1: host a has slots=0"),
        ("# none\n\na 4\n", "hosts:3: 'a 4' is not `host slots=N`"),
        ("# nobody\n", "names no host"),
        (None, "cannot read the hostfile"),
    ],
)
def test_hostfiles_with_mistakes(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_hostfile(path)


def test_hosts_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a slots=2  # rack 1\n\n# rack 2\nb slots = 4\nc\n")
    assert read_hostfile(path) == [Host("a", 2), Host("b", 4), Host("c", 0)]
    assert choose_hosts(ClusterConfig(hostfile=str(path), exclude=("b",), processes_per_node=8)) == [
        Host("a", 8),
        Host("c", 8),
    ]
    with pytest.raises(UserError, match=r"cluster\.include names x, which is not in"):
        choose_hosts(ClusterConfig(hostfile=str(path), include=("x",)))
    with pytest.raises(UserError, match="leave no host"):
        choose_hosts(ClusterConfig(hostfile=str(path), exclude=("a", "b", "c")))


# Who am I?

SRUN = {
    "SLURM_STEP_ID": "3",
    "SLURM_JOB_ID": "77",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "n7",
}


def test_ranks_of_slurm() -> None:
    found = rank_identity({**SRUN, "GLOO_SOCKET_IFNAME": "x"})
    assert {key: found[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")} == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "n7",
    }
    assert found["MASTER_PORT"] == port_of("77.3") != port_of("77.4")
    batch_script = {**SRUN, "SLURM_STEP_ID": "4294967291"}
    assert rank_identity(batch_script) == {}
    assert "MASTER_PORT" not in rank_identity({**SRUN, "MASTER_PORT": "1", "GLOO_SOCKET_IFNAME": "x"})


def test_ranks_of_mpi() -> None:
    values = {"RANK": "3", "SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    openmpi = {f"OMPI_COMM_WORLD_{key}": value for key, value in values.items()}
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        rank_identity(openmpi)
    found = rank_identity({**openmpi, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "5"})
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    mpich = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_PORT": "h:1"}
    assert rank_identity(mpich)["MASTER_ADDR"] == "127.0.0.1"
    assert rank_identity({**mpich, "RANK": "0", "MASTER_ADDR": "127.0.0.1"}) == {}


def test_lists_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tasks_per_node("4(x2),3,1(x2)") == [4, 4, 3, 1, 1]
    monkeypatch.setenv("PATH", "")  # no scontrol
    assert [first_hostname(text) for text in ("n[03-10],m1", "n7", "n7,m[1-2]", "gpu-a[1,4]")] == [
        "n03",
        "n7",
        "n7",
        "gpu-a1",
    ]


# What ranks find


def test_the_script_of_a_rank_restores_any_value(tmp_path: Path) -> None:
    odd = "a,b c'd\"e$HOME\nf`g"
    config = config_of("cluster.pass_environment=[ODD_*]", f"cluster.working_directory={tmp_path}")
    variables = environment.rank_variables(config, {"ODD_VALUE": odd, "SECRET": "x", "PYTHONPATH": "/p"})
    assert "SECRET" not in variables
    assert "PYTHONPATH" not in variables, "not allowed here"
    assert variables["PYTHONSAFEPATH"] == "1"
    text = environment.script(config, variables, ["sh", "-c", 'pwd; printf %s "$ODD_VALUE"; printenv SECRET'], "test")
    finished = subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True, env={}, check=False)
    assert finished.stdout == f"{tmp_path}\n{odd}"


def test_configured_variables_win_and_the_interface_is_set() -> None:
    config = config_of("cluster.environment={NCCL_DEBUG: INFO, OMP_NUM_THREADS: '3'}", "cluster.interface=ib0")
    found = environment.rank_variables(config, {"NCCL_DEBUG": "WARN", "NCCL_IB_HCA": "mlx5_0,mlx5_1", "LANG": "C"})
    assert (found["NCCL_DEBUG"], found["NCCL_IB_HCA"], found["OMP_NUM_THREADS"]) == ("INFO", "mlx5_0,mlx5_1", "3")
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("ib0", "ib0")
    assert "LANG" not in found


def test_a_missing_working_directory_is_one_line(tmp_path: Path) -> None:
    config = config_of(f"cluster.working_directory={tmp_path / 'none'}")
    text = environment.script(config, {}, ["true"], "test")
    finished = subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "none; share it or set cluster.working_directory" in finished.stderr.splitlines()[0]


# Plans


@pytest.mark.parametrize(
    ("target", "program", "words"),
    [
        ("local", None, "deepspeed.launcher.launch"),
        ("ssh", "pdsh", "--launcher pdsh"),
        ("torchrun", "pdsh", "--rdzv-backend c10d"),
        ("openmpi", "mpirun.openmpi", "--bind-to none"),
        ("mpich", "mpiexec.hydra", "-launcher ssh"),
    ],
)
def test_a_dry_run_shows_everything_and_writes_nothing(
    tmp_path: Path, target: str, program: str | None, words: str
) -> None:
    if program and shutil.which(program) is None:
        pytest.skip(f"needs {program}; .ci/run installs it")
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    config = config_of(
        f"run={tmp_path / 'run'}", f"cluster.hostfile={tmp_path / 'hosts'}", "cluster.processes_per_node=2"
    )
    text = Supervisor(TARGETS[target], config, ["my.yaml", "train.steps=7"]).describe()
    assert words in text
    assert "transpooler.launch.ranks.watcher my.yaml train.steps=7" in text
    assert "env        PATH=" in text
    assert "command    PYTHONSAFEPATH=1 " in text
    assert ("host       a slots=2" in text) == (target != "local")
    assert not (tmp_path / "run").exists()


def test_the_batch_script(tmp_path: Path) -> None:
    config = config_of(
        f"run={tmp_path}/r",
        "cluster.nodes=3",
        "cluster.slurm={partition: gpu, gpus_per_node: 4, time: '2:00:00', array: 0-4%1, dependency: afterok:7}",
        "cluster.slurm.options=[--constraint=a100, --mem=0]",
        "cluster.slurm.prologue=[module load cuda]",
    )
    text = TARGETS["slurm"].describe(config, ["my.yaml", "train.steps=7"])
    options = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    for option in (
        *("nodes=3", "ntasks-per-node=4", "gpus-per-node=4", "partition=gpu", "time=2:00:00", "array=0-4%1", "mem=0"),
        *("dependency=afterok:7", "constraint=a100", "signal=B:USR1@120", "requeue", "open-mode=append"),
    ):
        assert option in options
    assert text.index("module load cuda") < text.index("exec ")
    assert text.endswith("launch slurm --in-allocation my.yaml train.steps=7\n")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("written", "option"),
    [("12:00:00", "720"), ("90m", "90"), ("61", "2"), ("1d", "1440"), ("'2:00:00'", "2:00:00"), ("1-12", "1-12")],
)
def test_the_time_limit_of_a_job(tmp_path: Path, written: str, option: str) -> None:
    text = TARGETS["slurm"].describe(config_of(f"run={tmp_path}/r", f"cluster.slurm.time={written}"), [])
    assert f"#SBATCH --time={option}\n" in text


def test_every_target_is_explained_and_manifests_start_no_ranks_here() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    assert [name for name in TARGETS if f"[`{name}`](#{name})" not in text] == []
    with pytest.raises(UserError, match="target kubernetes starts no ranks here; leave --in-allocation out"):
        Supervisor(TARGETS["kubernetes"], config_of(), [])


# Decisions


def test_decisions() -> None:
    cluster = ClusterConfig(max_restarts=3, restart_delay_s=5, max_restart_delay_s=12)
    history = History()

    def after(outcome: Outcome, step: int = 0, stop: bool = False, hosts: list[Host] = HOSTS):
        return decide(outcome, history, hosts, cluster, step, stop)

    crash = Outcome("crashed", "exit code 1: ValueError", 0, "a", 1)
    assert (after(Outcome("done")).restart, after(Outcome("done")).exit_code) == (False, 0)
    assert after(Outcome("mistake", "x", 0, "a", 2)).exit_code == 2
    full = after(Outcome("crashed", "the engine of target torchrun ended with 1: No space left on device: '/tmp/x'"))
    assert (full.restart, full.exit_code) == (False, 2)
    assert after(Outcome("preempted")).delay_s == 0
    assert after(Outcome("preempted"), stop=True).exit_code == 75
    assert history == History()
    assert [after(crash).delay_s for _ in range(3)] == [5, 10, 12]
    assert after(crash, step=8).delay_s == 5, "a new checkpoint is progress"
    assert [after(crash, step=8).restart for _ in range(3)] == [True, True, False]
    assert after(crash, step=8).exit_code == GIVEN_UP
    assert history.failures == {}, "an exception speaks against the code"


def test_a_host_that_failed_twice_is_left_out() -> None:
    lost = Outcome("lost", "no sign of life", 2, "b")
    for elastic, min_nodes, expected in ((True, 2, True), (False, 1, False), (True, 3, False)):
        cluster, history = ClusterConfig(elastic=elastic, min_nodes=min_nodes), History()
        assert decide(lost, history, HOSTS, cluster, 4, False).left_out == ()
        second = decide(lost, history, HOSTS, cluster, 8, False)
        assert second.restart
        assert second.left_out == (("b",) if expected else ()), "else it is waited for"
    peer = Outcome("crashed", "exit code 1: RuntimeError: Connection closed by peer [10.0.0.2]:1", 0, "a", 1)
    killed = Outcome("crashed", "killed by SIGKILL (out of memory?)", 1, "c", -9)
    history = History()
    decide(peer, history, HOSTS, ClusterConfig(), 0, False)
    decide(killed, history, HOSTS, ClusterConfig(), 0, False)
    assert history.failures == {"c": 1}


# Before the start


def test_hosts_that_disagree_are_named() -> None:
    config = config_of("cluster.interface=ib0", "cluster.master_port=5000")
    base = facts() | {
        "addresses": {"ib0": "10.0.0.1"},
        "interfaces": ["ib0"],
        "witness": True,
        "gpus": 0,
        "port_free": True,
    }
    answers = {name: dict(base) for name in "abc"}
    assert list(preflight.problems(config, HOSTS, answers)) == []
    answers["b"] |= {
        "packages": base["packages"] | {"torch": "1.0"},
        "addresses": {"eth0": "10.0.0.2"},
        "interfaces": ["eth0"],
    }
    answers["c"] |= {"witness": False, "gpus": 1}
    answers["a"] |= {"port_free": False}
    lines = list(preflight.problems(config, HOSTS, answers))
    assert [line.split(":")[0] for line in lines] == ["b", "b", "c", "c", "a"]
    for line, words in zip(
        lines,
        (
            "torch is 1.0, but",
            "interface ib0 does not exist; it has eth0",
            "2 slots, but 1 GPUs",
            "does not see",
            "port 5000 is in use",
        ),
        strict=True,
    ):
        assert words in line


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cluster.slurm.requeue=always", "cluster.slurm.requeue is 'always'; choose one of scontrol, exit_code, none"),
        ("cluster.slurm.options=[exclusive]", "write options as on the command line"),
        ("cluster.master_port=80", "cluster.master_port is 80"),
        ("cluster.kubernetes.kind=pod", "cluster.kubernetes.kind is 'pod'"),
        ("cluster.processes_per_node=0", "cluster.processes_per_node is 0"),
    ],
)
def test_settings_with_mistakes(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        config_of(setting)

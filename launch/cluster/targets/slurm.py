"""SLURM: the batch script, its submission, and coming back after preemption or the time limit.

The batch script runs the supervisor on the job's first host (it takes the script's place, so that SLURM's signals reach
it), and the supervisor starts the ranks with srun. Nothing about a site is known here: `cluster.slurm` passes it on.
"""

import math
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from transpooler.common import PREEMPTED, UserError, atomic_write, duration_s, say
from transpooler.launch.cluster.attempt_plan import AttemptPlan, AttemptRequest
from transpooler.launch.cluster.doctor.preflight import probe_script
from transpooler.launch.cluster.doctor.probe import read_answers
from transpooler.launch.cluster.environment import prologue, python, rank_variables, run_folder
from transpooler.launch.cluster.hosts import Host, num_ranks
from transpooler.launch.cluster.targets.base import Answers, Target
from transpooler.trainer.config import Config

BAD_STATES = ("down", "drain", "fail", "unk", "*")
ENDING_STATES = ("CANCELLED", "COMPLETING", "COMPLETED", "FAILED", "PREEMPTED", "TIMEOUT", "NODE_FAIL")
"""A job in one of these ends by its user's scancel, or SLURM requeues it by itself."""
SLURM_TIMEOUT_S = 120


class Slurm(Target):
    """A batch job; inside it (--in-allocation) the supervisor and srun."""

    name = "slurm"
    about = "a batch job: sbatch and srun"
    submits = True
    signal_spread_s = 3.0

    def hosts(self, config: Config) -> list[Host]:
        """Hosts of the allocation in which this process runs."""
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        if nodes is None:
            raise UserError(
                "--in-allocation needs a SLURM allocation; use it in a batch script, or leave it out to submit"
            )
        names = _output_of("scontrol", "show", "hostnames", nodes).split()
        return [Host(name, _ranks_per_node(config)) for name in names]

    def ask(self, config: Config, hosts: Sequence[Host]) -> tuple[Answers, Mapping[str, str]]:
        """Asked through srun; no answers where srun fails, since training itself will then say why."""
        run = run_folder(config)
        path = run.launch / "probe.sh"
        with atomic_write(path) as file:
            file.write(probe_script(config, run.lock))  # exists: the launcher holds it
        nodes = ["--nodes", str(len(hosts)), "--ntasks", str(len(hosts)), "--ntasks-per-node", "1", "--export=ALL"]
        where = ["--nodelist", ",".join(host.name for host in hosts), *config.cluster.slurm.srun_options]
        found = read_answers(_output_of("srun", *nodes, *where, "bash", str(path)))
        answers = {answer["host"]: answer for answer in found}
        return (answers if len(answers) == len(hosts) else {}), {}

    def master(self, config: Config, hosts: Sequence[Host], answers: Answers) -> None:
        """Ranks derive it from SLURM's variables (launch.ranks.identity)."""

    def plan(self, request: AttemptRequest) -> AttemptPlan:
        """srun inside the allocation."""
        self.require("srun", "slurm-client")
        command = ["srun", "--nodes", str(len(request.hosts)), "--ntasks", str(num_ranks(request.hosts))]
        command += ["--ntasks-per-node", str(self.equal_slots(request.hosts))]
        command += ["--nodelist", ",".join(host.name for host in request.hosts), "--kill-on-bad-exit=1", "--export=ALL"]
        command += [*request.config.cluster.slurm.srun_options, str(request.rank_script)]
        return self.make_plan(request, command)

    def gone(self, names: Sequence[str]) -> dict[str, str]:
        """Hosts that SLURM itself counts as not usable, and its word for it."""
        found = {}
        for line in _output_of("sinfo", "-h", "-N", "-n", ",".join(names), "-o", "%N %T").splitlines():
            name, _, state = line.partition(" ")
            if any(sign in state for sign in BAD_STATES):
                found[name] = f"SLURM says {state}"
        return found

    def finish(self, config: Config, code: int) -> int:
        """Requeue a preempted job where the site wants the job itself to do so."""
        if code == PREEMPTED and config.cluster.slurm.requeue == "scontrol":
            job = os.environ["SLURM_JOB_ID"]
            state = _output_of("scontrol", "show", "job", "-o", job).partition("JobState=")[2].partition(" ")[0]
            if state in ENDING_STATES:
                say(f"launch: job {job} is {state}: not requeued")
            else:
                say(f"launch: requeues job {job}")
                _output_of("scontrol", "requeue", job)
        return code

    def submit(self, config: Config, settings: Sequence[str]) -> str:
        """Write the batch script and submit it; the job's number. UserError repeats what sbatch objects to."""
        self.require("sbatch", "slurm-client")
        run = run_folder(config)
        path = run.launch / "job.sbatch"
        run.logs.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(self.describe(config, settings))
        finished = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
        if finished.returncode:
            objections = [line for line in finished.stderr.splitlines() if "error" in line] or [finished.stderr.strip()]
            raise UserError(
                f"{path}: sbatch refuses it: {objections[0].removeprefix('sbatch: error: ')}; see cluster.slurm"
            )
        return finished.stdout.strip().split(";")[0] + "\n"

    def describe(self, config: Config, settings: Sequence[str]) -> str:
        """The sbatch script of a run."""
        cluster, site, run = config.cluster, config.cluster.slurm, run_folder(config)
        log = "slurm-%A_%a.log" if site.array else "slurm-%j.log"
        options = [
            f"--job-name={run.root.name}",
            f"--nodes={cluster.nodes}",
            f"--ntasks-per-node={_ranks_per_node(config)}",
            f"--output={run.logs / log}",
            "--open-mode=append",
            "--export=NIL",
            f"--signal=B:USR1@{site.signal_before_end_s}",
            "--no-requeue" if site.requeue == "none" else "--requeue",
            *(
                f"--{name}={value}"
                for name in ("partition", "account", "array", "dependency")
                if (value := getattr(site, name))
            ),
            *([f"--time={_minutes(site.time)}"] if site.time is not None else []),
            *([f"--gpus-per-node={site.gpus_per_node}"] if site.gpus_per_node else []),
            *site.options,
        ]
        command = [python(config), "-u", "-m", "transpooler", "launch", self.name, "--in-allocation", *settings]
        lines = [
            "#!/usr/bin/env bash",
            "# Submitted by `transpooler launch slurm`; `sbatch` takes it as it is, too.",
            *(f"#SBATCH {option}" for option in options),
            'export HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}',
            *prologue(config, rank_variables(config, os.environ)),
            *site.prologue,
            f"exec {shlex.join(command)}",
        ]
        return "\n".join(lines) + "\n"


def _ranks_per_node(config: Config) -> int:
    """As configured, else one a GPU, else 1."""
    return config.cluster.processes_per_node or config.cluster.slurm.gpus_per_node or 1


def _minutes(limit: str | float) -> str:
    """A time limit as sbatch takes it: whole minutes. YAML itself reads HH:MM:SS as seconds."""
    seconds = duration_s(limit)
    return str(limit) if seconds is None else str(math.ceil(seconds / 60))


def _output_of(*command: str) -> str:
    """Output of a SLURM command; where it fails, nothing, and a line that says why."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SLURM_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        message = (getattr(error, "stderr", "") or str(error)).strip()
        say(f"launch: {' '.join(command)}: {message}")
        return ""

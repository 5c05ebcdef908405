"""From a target and a configuration to a supervised job, or to the description of one."""

from collections.abc import Sequence

from transpooler.common.errors import UserError
from transpooler.common.exit_codes import PREEMPTED
from transpooler.launch.cluster.doctor import preflight
from transpooler.launch.cluster.doctor.probe import num_gpus
from transpooler.launch.cluster.environment import run_folder, working_directory
from transpooler.launch.cluster.hosts import Host, chosen_hosts
from transpooler.launch.cluster.supervisor import Supervisor, next_attempt
from transpooler.launch.cluster.targets import slurm
from transpooler.trainer.config import Config


def supervise(target: str, config: Config, settings: Sequence[str]) -> int:
    """Run the job to its end; the exit code."""
    if problem := preflight.folder_problem(working_directory(config)):
        raise UserError(problem)
    code = Supervisor(target, config, settings, hosts_of(target, config)).run()
    return slurm.come_back(config) if target == "slurm" and code == PREEMPTED else code


def dry_run(target: str, config: Config, settings: Sequence[str]) -> str:
    """What the first attempt would be: hosts, command, environment, files."""
    supervisor = Supervisor(target, config, settings, hosts_of(target, config))
    return supervisor.plan(next_attempt(run_folder(config)), {}).describe()


def hosts_of(target: str, config: Config) -> list[Host]:
    """The hosts that a target would use, as far as they are known here."""
    if target == "local":
        return [Host("localhost", config.cluster.processes_per_node or num_gpus() or 1)]
    if target == "slurm":
        return slurm.allocated_hosts(config)
    return chosen_hosts(config.cluster)

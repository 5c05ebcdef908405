"""From a target and a configuration to a supervised job, or to the description of one."""

from collections.abc import Sequence

from transpooler.common.errors import UserError
from transpooler.launch.cluster.doctor import preflight
from transpooler.launch.cluster.environment import run_folder, working_directory
from transpooler.launch.cluster.supervisor import Supervisor, next_attempt
from transpooler.launch.cluster.targets.base import Target
from transpooler.trainer.config import Config


def supervise(target: Target, config: Config, settings: Sequence[str]) -> int:
    """Run the job to its end; returns the exit code."""
    if problem := preflight.folder_problem(working_directory(config)):
        raise UserError(problem)
    return target.finish(config, Supervisor(target, config, settings).run())


def dry_run(target: Target, config: Config, settings: Sequence[str]) -> str:
    """What the first attempt would be: hosts, command, environment, files."""
    return Supervisor(target, config, settings).plan(next_attempt(run_folder(config)), {}).describe()

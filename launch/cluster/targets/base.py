"""What a launch target is: which hosts it uses, how its engine starts the ranks there, and how it learns what ended.

Every engine starts the same rendered rank.sh once per rank (launch.cluster.environment). The methods of `Target` suit
an engine that reaches the hosts of a hostfile over ssh; a target overrides what differs.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transpooler.common import UserError
from transpooler.launch.cluster.attempt_plan import AttemptPlan, AttemptRequest
from transpooler.launch.cluster.doctor import preflight
from transpooler.launch.cluster.environment import python, run_folder, script, working_directory
from transpooler.launch.cluster.hosts import Host, choose_hosts
from transpooler.launch.ranks.watcher import ATTEMPT, BIND_CORES, LOGS
from transpooler.trainer.config import Config
from transpooler.trainer.guards.run_lock import TOKEN

Answers = Mapping[str, Mapping[str, Any]]
"""What each host says of itself (probe.facts), by the host's name."""
DEFAULT_PORT = 29500


class Target:
    """One way to start the ranks of a run."""

    name: str
    """What stands after `transpooler launch`."""
    about: str
    """Its line in `transpooler launch --help`."""
    submits = False
    """Whether the job is handed to another system (`submit`) rather than started and watched by this process."""
    ends_gently = True
    """Whether SIGTERM may be sent to the engine before SIGKILL."""
    signal_spread_s = 0.0
    """How long after the first rank a signal of the scheduler may take to reach this process, in seconds."""

    def hosts(self, config: Config) -> list[Host]:
        """The hosts that a job would use, as far as they are known here. UserError names a wrong setting."""
        return choose_hosts(config.cluster)

    def ask(self, config: Config, hosts: Sequence[Host]) -> tuple[Answers, Mapping[str, str]]:
        """What the hosts say before an attempt, and what is wrong with the silent ones; no answers: not checked."""
        return preflight.ask_hosts(config, hosts)

    def master(self, config: Config, hosts: Sequence[Host], answers: Answers) -> tuple[str, int] | None:
        """Address and port of the rendezvous; None leaves them to `plan` (as --dry-run does: no host was asked)."""
        return preflight.choose_master(config, hosts[0].name, answers) if answers else None

    def plan(self, request: AttemptRequest) -> AttemptPlan:
        """The command that starts one attempt, and its files. UserError where a program is not installed."""
        raise NotImplementedError

    def gone(self, names: Sequence[str]) -> dict[str, str]:
        """Hosts that cannot be used any more, and why; asked when an attempt failed and no rank is to blame."""
        return preflight.unreachable(names)

    def finish(self, config: Config, code: int) -> int:
        """Called with the job's exit code at its end; returns that of the launcher."""
        return code

    def submit(self, config: Config, settings: Sequence[str]) -> str:
        """Hand the job over (where `submits`); returns what to print."""
        raise NotImplementedError

    def describe(self, config: Config, settings: Sequence[str]) -> str:
        """What `submit` would hand over; for --dry-run."""
        raise NotImplementedError

    def require(self, program: str, package: str) -> str:
        """Path of a program that this target needs; UserError naming the Debian package that has it."""
        path = shutil.which(program)
        if path is None:
            raise UserError(
                f"target {self.name} needs {program}, which is not installed here; install it (Debian: {package}) or "
                "choose another target"
            )
        return path

    def equal_slots(self, hosts: Sequence[Host]) -> int:
        """Ranks on each host, for engines that take one number for all; UserError where hosts differ."""
        slots = {host.slots for host in hosts}
        if len(slots) > 1:
            raise UserError(f"target {self.name} needs equal slots on all hosts; set cluster.processes_per_node")
        return slots.pop()

    def make_plan(
        self,
        request: AttemptRequest,
        command: Sequence[str],
        files: Mapping[Path, str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> AttemptPlan:
        """The plan of an engine started by `command`; `variables` are added to those of the ranks."""
        config = request.config
        everything = {**request.variables, **(variables or {})}
        everything |= {ATTEMPT: str(request.folder), LOGS: str(run_folder(config).logs)}
        if config.cluster.bind_cores:
            everything[BIND_CORES] = "1"
        if TOKEN in os.environ:  # else this is a dry run
            everything[TOKEN] = os.environ[TOKEN]
        watcher = [python(config), "-u", "-m", "transpooler.launch.ranks.watcher", *request.settings]
        comment = f"Started once per rank by the engine of target {self.name}."
        return AttemptPlan(
            target=self.name,
            hosts=request.hosts,
            command=tuple(command),
            files={request.rank_script: script(config, everything, watcher, comment), **(files or {})},
            variables=everything,
            directory=working_directory(config),
            engine_variables={"PYTHONSAFEPATH": "1"},  # engines run Python in the working directory, too
            ends_gently=self.ends_gently,
        )


def master_or_first(request: AttemptRequest) -> tuple[str, int]:
    """Address and port of the rendezvous: as decided, else the first host's name and the usual port."""
    return request.master or (request.hosts[0].name, request.config.cluster.master_port or DEFAULT_PORT)

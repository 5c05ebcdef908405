"""DeepSpeed's launcher on this machine: no ssh, no hostfile."""

from collections.abc import Mapping, Sequence

from transpooler.common import free_port
from transpooler.launch.cluster.attempt_plan import AttemptPlan, AttemptRequest
from transpooler.launch.cluster.doctor import probe
from transpooler.launch.cluster.hosts import Host, num_ranks
from transpooler.launch.cluster.targets.base import Answers, Target, master_or_first
from transpooler.launch.ranks.local import launcher_command
from transpooler.trainer.config import Config


class Local(Target):
    """The ranks of one machine."""

    name = "local"
    about = "this machine"

    def hosts(self, config: Config) -> list[Host]:
        return [Host("localhost", config.cluster.processes_per_node or probe.num_gpus() or 1)]

    def ask(self, config: Config, hosts: Sequence[Host]) -> tuple[Answers, Mapping[str, str]]:
        return {hosts[0].name: probe.facts(port=str(config.cluster.master_port or ""))}, {}

    def master(self, config: Config, hosts: Sequence[Host], answers: Answers) -> tuple[str, int]:
        return "127.0.0.1", config.cluster.master_port or free_port()

    def plan(self, request: AttemptRequest) -> AttemptPlan:
        port, program = master_or_first(request)[1], ("--no_python", str(request.rank_script))
        return self.make_plan(request, launcher_command(num_ranks(request.hosts), port, program, log_level="error"))

    def gone(self, names: Sequence[str]) -> dict[str, str]:
        return {}

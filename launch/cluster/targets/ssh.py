"""DeepSpeed's runner, which starts its launcher on each host of a hostfile through pdsh."""

import sys

from transpooler.launch.cluster.attempt_plan import AttemptPlan, AttemptRequest
from transpooler.launch.cluster.targets.base import Target, master_or_first

RUNNER = (sys.executable, "-m", "deepspeed.launcher.runner")


class Ssh(Target):
    """The hosts of a hostfile over ssh."""

    name = "ssh"
    about = "hosts of a hostfile: DeepSpeed's runner and pdsh"
    ends_gently = False
    """DeepSpeed's runner answers SIGTERM with a `pkill` of every DeepSpeed job of this user on all hosts."""

    def plan(self, request: AttemptRequest) -> AttemptPlan:
        self.require("pdsh", "pdsh")
        address, port = master_or_first(request)
        hostfile = request.folder / "hostfile"
        command = [
            *(*RUNNER, "--log_level", "error", "--hostfile", str(hostfile)),
            *("--launcher", "pdsh", "--force_multi", "--no_ssh_check"),
            f"--launcher_args={' '.join(request.config.cluster.launcher_options)}",
            *("--master_addr", address, "--master_port", str(port)),
            *("--no_local_rank", "--no_python", str(request.rank_script)),
        ]
        lines = "".join(f"{host.name} slots={host.slots}\n" for host in request.hosts)
        return self.make_plan(request, command, {hostfile: lines})

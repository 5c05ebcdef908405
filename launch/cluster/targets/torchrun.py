"""torchrun, started on each host of a hostfile by pdsh; its agents meet at a c10d rendezvous on the first host."""

from transpooler.launch.cluster.attempt_plan import AttemptPlan, AttemptRequest
from transpooler.launch.cluster.environment import python, run_folder, script
from transpooler.launch.cluster.targets.base import Target, master_or_first

FAN_OUT = "1024"
"""Hosts that pdsh reaches at a time. By default it starts 32, and the job would wait for the rest for ever."""


class Torchrun(Target):
    """One torchrun a host."""

    name = "torchrun"
    about = "hosts of a hostfile: torchrun, c10d rendezvous"

    def plan(self, request: AttemptRequest) -> AttemptPlan:
        self.require("pdsh", "pdsh")
        config, (address, port) = request.config, master_or_first(request)
        start = [
            *(python(config), "-m", "torch.distributed.run", "--nnodes", str(len(request.hosts))),
            *("--nproc-per-node", str(self.equal_slots(request.hosts))),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{port}"),
            *("--rdzv-id", f"{run_folder(config).name}-{request.folder.name}", "--max-restarts", "0"),
            *config.cluster.launcher_options,
            *("--no-python", str(request.rank_script)),
        ]
        text = script(config, request.variables, start, "Started once per host by pdsh.")
        # Each host names the address by which the others reach it; torchrun alone would announce the host's name,
        # which may not resolve.
        own = f"local_address=$({python(config)} -m transpooler.launch.ranks.identity {address})\nexec "
        text = text.replace("exec ", own, 1).replace("--rdzv-id", '--local-addr "$local_address" --rdzv-id', 1)
        host_script, names = request.folder / "host.sh", ",".join(host.name for host in request.hosts)
        command = ["pdsh", "-S", "-R", "ssh", "-f", FAN_OUT, "-w", names, str(host_script)]
        return self.make_plan(request, command, {host_script: text})

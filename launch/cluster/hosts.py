"""Hosts and their slots, from a DeepSpeed hostfile."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transpooler.common import UserError
from transpooler.trainer.config.cluster import ClusterConfig


@dataclass(frozen=True)
class Host:
    """A host and its number of ranks (0: one a GPU, decided when the host was asked)."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """Hosts from lines `host slots=N`, without blank lines and # comments. UserError names file, line and remedy."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the hostfile: {getattr(error, 'strerror', error)}") from None
    hosts: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"(\S+)(?:\s+slots\s*=\s*(\S+))?", text)
        if match is None:
            problems.append(f"{path}:{number}: {text!r} is not `host slots=N`")
        elif match[1] in hosts:
            problems.append(f"{path}:{number}: host {match[1]} is there twice; add up its slots in one line")
        elif match[2] is not None and (not match[2].isdecimal() or int(match[2]) < 1):
            problems.append(f"{path}:{number}: host {match[1]} has slots={match[2]}; give a whole number above 0")
        else:
            hosts[match[1]] = int(match[2] or 0)
    if problems:
        raise UserError(*problems)
    if not hosts:
        raise UserError(f"{path}: names no host; write lines `host slots=N`")
    return [Host(name, slots) for name, slots in hosts.items()]


def choose_hosts(cluster: ClusterConfig) -> list[Host]:
    """Hosts of the hostfile after include, exclude and processes_per_node. UserError names a wrong setting."""
    if cluster.hostfile is None:
        raise UserError("cluster.hostfile is not set; give a file of lines `host slots=N` (cluster.hostfile=HOSTS)")
    hosts = read_hostfile(Path(cluster.hostfile))
    known = {host.name for host in hosts}
    for key in ("include", "exclude"):
        for name in getattr(cluster, key):
            if name not in known:
                raise UserError(f"cluster.{key} names {name}, which is not in {cluster.hostfile}")
    chosen = [
        Host(host.name, cluster.processes_per_node or host.slots)
        for host in hosts
        if (not cluster.include or host.name in cluster.include) and host.name not in cluster.exclude
    ]
    if not chosen:
        raise UserError("cluster.include and cluster.exclude leave no host")
    return chosen


def num_ranks(hosts: Sequence[Host]) -> int:
    """Ranks of a job on these hosts."""
    return sum(host.slots for host in hosts)

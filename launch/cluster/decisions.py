"""Decides what follows from the end of an attempt. Pure (no clock, no processes), so that every case can be tested."""

import errno
import os
import re
from dataclasses import dataclass, field

from transpooler.common import DONE, PREEMPTED, STALLED, USER_ERROR, list_some
from transpooler.common.files import FULL
from transpooler.launch.cluster.attempt import Outcome
from transpooler.launch.cluster.hosts import Host
from transpooler.trainer.config.cluster import ClusterConfig

GIVEN_UP = 1
PEERS = re.compile(
    r"closed by peer|reset by peer|Timed out|timed out|unreachable|Broken pipe|No route|Connection refused"
)
"""What a rank says when another one has failed."""
HARDWARE = re.compile(r"CUDA error|ECC|uncorrectable|NCCL|Input/output error|SIGBUS|SIGSEGV|SIGKILL")
"""What points to the host rather than to the code."""

DISK = re.compile("|".join(os.strerror(each) for each in (*FULL, errno.EROFS)))
"""What an engine says that cannot write."""


@dataclass
class History:
    """What happened in earlier attempts."""

    fruitless: int = 0
    """Failures in a row without a new checkpoint in between."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failures that point to a host, by its name."""
    step: int = 0
    """Step of the newest checkpoint when an attempt last failed."""


@dataclass(frozen=True)
class Decision:
    """Restart on `hosts` after `delay_s`, or end with `exit_code`."""

    restart: bool
    why: str
    exit_code: int = DONE
    delay_s: float = 0.0
    left_out: tuple[str, ...] = ()


def blames_peer(outcome: Outcome) -> bool:
    """Whether the rank that failed first only saw another one vanish."""
    return outcome.ending == "crashed" and (outcome.exit_code == STALLED or bool(PEERS.search(outcome.reason)))


def decide(
    outcome: Outcome, history: History, hosts: list[Host], cluster: ClusterConfig, step: int, stop_requested: bool
) -> Decision:
    """Decide what to do after `outcome`, and update `history`; `step` is that of the newest checkpoint."""
    if outcome.ending == "done":
        return Decision(False, "the run is complete")
    if outcome.ending == "mistake" or DISK.search(outcome.reason):
        return Decision(False, "a mistake in input, configuration or disks is not repaired by a restart", USER_ERROR)
    if stop_requested:
        return Decision(False, "stopped on request; launch again to continue", PREEMPTED)
    if outcome.ending == "preempted":
        return Decision(True, "preempted: at once")
    history.fruitless = 1 if step > history.step else history.fruitless + 1
    history.step = max(step, history.step)
    points_to_host = outcome.ending in ("lost", "stopped") or HARDWARE.search(outcome.reason)
    if outcome.host is not None and points_to_host and not blames_peer(outcome):
        history.failures[outcome.host] = history.failures.get(outcome.host, 0) + 1
    if history.fruitless > cluster.max_restarts:
        return Decision(
            False, f"{history.fruitless} failures without a new checkpoint (cluster.max_restarts)", GIVEN_UP
        )
    delay_s = min(cluster.max_restart_delay_s, cluster.restart_delay_s * 2 ** (history.fruitless - 1))
    why = f"restart {history.fruitless} without progress of at most {cluster.max_restarts}"
    failed = [host.name for host in hosts if history.failures.get(host.name, 0) >= cluster.host_failures]
    names, remaining = list_some(failed), len(hosts) - len(failed)
    if not failed or len(hosts) == 1:
        return Decision(True, why, delay_s=delay_s)
    if not cluster.elastic:
        return Decision(True, f"{why}; {names} may come back (cluster.elastic is false)", delay_s=delay_s)
    if remaining < cluster.min_nodes:
        few = f"without {names} fewer than cluster.min_nodes = {cluster.min_nodes} remain"
        return Decision(True, f"{why}; {few}", delay_s=delay_s)
    return Decision(True, f"failed {cluster.host_failures} times", delay_s=delay_s, left_out=tuple(failed))

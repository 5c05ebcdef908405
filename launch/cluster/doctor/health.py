"""Judges what hosts said and what the network gave, for `transpooler doctor`. Pure: rows of a table from facts."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OK, WARNING, FAILS = "ok", "warning", "FAILS"
MAX_CLOCK_SKEW_S = 5.0
MIN_DISK_GIB, MIN_SHM_GIB, MIN_OPEN_FILES = 5.0, 1.0, 4096
SLOW_SHARE = 0.5
"""A host is slow if its best pair has less than this share of the median pair's bandwidth, or twice its latency."""
SLOW_LATENCY_MS = 1.0
"""Lower latencies are never called slow."""


@dataclass(frozen=True)
class Row:
    """One finding: host, check, state, what was found, and what to do about it."""

    host: str
    check: str
    state: str
    finding: str
    fix: str = ""


def host_rows(host: str, answer: Mapping[str, Any]) -> Iterator[Row]:
    """Findings about one host, from what it says of itself (probe.facts)."""
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in answer["packages"].items())
    missing = [name for name, version in answer["packages"].items() if version is None]
    state = FAILS if missing else OK
    yield Row(
        host, "versions", state, f"Python {answer['python']}, {versions}", "pip install transpooler" if missing else ""
    )
    gpus = f"{answer['gpus']} GPUs" if answer["gpus"] else "no GPU (gloo)"
    yield Row(host, "hardware", OK, f"{answer['cores']} cores, {gpus}")
    skew = answer.get("clock_skew_s", 0.0)
    yield _limit(host, "clock", skew <= MAX_CLOCK_SKEW_S, f"{skew:.1f} s away from here", "run chrony or ntpd there")
    disk = answer["disk_free_gib"]
    yield _limit(
        host, "disk", disk >= MIN_DISK_GIB, f"{disk:.0f} GiB free for the run folder", "free space for checkpoints"
    )
    shm = answer["shm_gib"]
    fix = "enlarge /dev/shm (containers: --shm-size): loader workers and NCCL use it"
    yield _limit(host, "shared memory", shm >= MIN_SHM_GIB, f"{shm:.1f} GiB", fix)
    files = answer["open_files"]
    yield _limit(
        host, "open files", files < 0 or files >= MIN_OPEN_FILES, f"limit {files}", "raise it: ulimit -n 65536"
    )
    if answer["gpus"]:
        locked = answer["locked_memory_kib"]
        yield _limit(host, "locked memory", locked < 0, f"limit {locked}", "InfiniBand wants it: ulimit -l unlimited")
    tools = answer["compilers"]
    yield _limit(
        host,
        "compiler",
        "g++" in tools,
        ", ".join(tools) or "none",
        "install g++: DeepSpeed and the operators build code",
    )


def network_rows(hosts: Sequence[str], network: Mapping[str, Any]) -> Iterator[Row]:
    """Findings about each pair, the slow hosts, and the all-reduce."""
    slow = slow_hosts(hosts, network["pairs"])
    for pair in network["pairs"]:
        first, other = (hosts[rank] for rank in pair["ranks"])
        finding = f"{pair['latency_ms']:.2f} ms, {pair['bandwidth_mib_s']:.0f} MiB/s"
        state = WARNING if {first, other} & slow.keys() else OK
        yield Row(f"{first} - {other}", "network", state, finding)
    for host, why in slow.items():
        yield Row(
            host,
            "slow host",
            WARNING,
            why,
            f"check its cable, switch port and load, or leave it out: cluster.exclude=[{host}]",
        )
    rate = network["all_reduce_mib"] / network["all_reduce_s"]
    took = f"{network['all_reduce_mib']} MiB in {network['all_reduce_s']:.2f} s, {rate:.0f} MiB/s"
    finding = f"{took} over {len(hosts)} hosts ({network['backend']})"
    right = network["correct"]
    yield Row(
        "all",
        "all-reduce",
        OK if right else FAILS,
        finding if right else "wrong sums",
        "" if right else "test memory and network cards",
    )


def slow_hosts(hosts: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Hosts whose pairs are all slower than those of others, and why. Of two hosts none can be named."""
    if len(hosts) < 3:
        return {}
    bandwidth = statistics.median(pair["bandwidth_mib_s"] for pair in pairs)
    found = {}
    for number, host in enumerate(hosts):
        mine = [pair for pair in pairs if number in pair["ranks"]]
        others = [pair for pair in pairs if number not in pair["ranks"]]
        latency = statistics.median(pair["latency_ms"] for pair in others)
        best, nearest = max(pair["bandwidth_mib_s"] for pair in mine), min(pair["latency_ms"] for pair in mine)
        reference = max(bandwidth, statistics.median(pair["bandwidth_mib_s"] for pair in others))
        if nearest > max(2 * latency, SLOW_LATENCY_MS):
            found[host] = f"at least {nearest:.1f} ms to every other host, {latency:.1f} ms between the others"
        elif best < SLOW_SHARE * reference:
            found[host] = f"at most {best:.0f} MiB/s to any other host, {reference:.0f} MiB/s between the others"
    return found


def _limit(host: str, check: str, fine: bool, finding: str, fix: str) -> Row:
    return Row(host, check, OK if fine else WARNING, finding, "" if fine else fix)

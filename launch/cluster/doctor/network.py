"""Measures the network between hosts.

`python -m transpooler.launch.cluster.doctor.network` runs as one process per host, with RANK and so on set.

It measures latency (half a round trip of 8 bytes, in ms) and bandwidth (a large message, one way, in MiB/s) of each
pair of hosts, one pair at a time, and then an all-reduce over all of them. Rank 0 prints one line of JSON. It uses NCCL
where a host has CUDA, else gloo.
"""

import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist

from transpooler.launch.cluster.doctor.probe import print_answer
from transpooler.launch.ranks.identity import rank_identity

LATENCY_ROUNDS = 20
BANDWIDTH_MIB = 4
BANDWIDTH_ROUNDS = 3
ALL_REDUCE_MIB = 16
TIMEOUT_S = 120


def main() -> None:
    """Measure; rank 0 prints."""
    os.environ.update(rank_identity(os.environ))
    on_cuda = torch.cuda.is_available()
    device = torch.device("cuda:0" if on_cuda else "cpu")
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timedelta(seconds=TIMEOUT_S))
    rank, size = dist.get_rank(), dist.get_world_size()

    def finish(action: Callable[[], Any]) -> float:
        """The time (seconds) at which `action` has ended on the device."""
        action()
        if on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    rows = [_measure_pair(rank, pair, device, finish) for pair in combinations(range(size), 2)]
    tensor = torch.ones(ALL_REDUCE_MIB * 2**18, device=device)
    finish(lambda: dist.all_reduce(tensor))
    tensor.fill_(1.0)
    started = finish(dist.barrier)
    elapsed_s = finish(lambda: dist.all_reduce(tensor)) - started
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, [row for row in rows if row])
    if rank == 0:
        found = {
            "pairs": [row for rows in gathered for row in rows],
            "all_reduce_mib": ALL_REDUCE_MIB,
            "all_reduce_s": elapsed_s,
            "correct": bool((tensor == size).all()),
            "backend": dist.get_backend(),
        }
        print_answer(found)
    dist.destroy_process_group()


def _measure_pair(rank: int, pair: tuple[int, int], device: torch.device, finish: Any) -> dict[str, Any] | None:
    """The first rank of the pair returns what it measured; other ranks wait, so that pairs do not share a cable."""
    dist.barrier()
    if rank not in pair:
        return None
    first, other = rank == pair[0], pair[1] if rank == pair[0] else pair[0]
    small, large = torch.zeros(2, device=device), torch.zeros(BANDWIDTH_MIB * 2**18, device=device)

    def ping() -> None:
        for action in (dist.send, dist.recv) if first else (dist.recv, dist.send):
            action(small, other)

    def push() -> None:
        (dist.send if first else dist.recv)(large, other)
        (dist.recv if first else dist.send)(small, other)

    times: dict[str, float] = {}
    for name, action, rounds in (("ping", ping, LATENCY_ROUNDS), ("push", push, BANDWIDTH_ROUNDS)):
        action()
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            taken.append(finish(action) - started)
        times[name] = statistics.median(taken)
    if not first:
        return None
    one_way_s = max(1e-9, times["push"] - times["ping"] / 2)
    return {"ranks": list(pair), "latency_ms": times["ping"] / 2 * 1e3, "bandwidth_mib_s": BANDWIDTH_MIB / one_way_s}


if __name__ == "__main__":
    main()

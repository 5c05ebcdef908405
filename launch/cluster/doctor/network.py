"""What the network between hosts gives.

`python -m transpooler.launch.cluster.doctor.network` runs as one process a host, with RANK and so on set.

Latency (half a round trip of 8 bytes) and bandwidth (a large message, one way) of each pair, one pair at a time, and an
all-reduce over all hosts. Rank 0 prints one line of JSON. Uses NCCL where a host has CUDA, else gloo.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import combinations
from typing import Any

from transpooler.launch.ranks.identity import rank_identity

MARK = "transpooler-network "
LATENCY_ROUNDS = 20
BANDWIDTH_MIB = 4
BANDWIDTH_ROUNDS = 3
ALL_REDUCE_MIB = 16
TIMEOUT_S = 120


def main() -> None:
    """Measure; rank 0 prints."""
    os.environ.update(rank_identity(os.environ))
    import torch
    import torch.distributed as dist

    on_cuda = torch.cuda.is_available()
    device = torch.device("cuda:0" if on_cuda else "cpu")
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timedelta(seconds=TIMEOUT_S))
    rank, size = dist.get_rank(), dist.get_world_size()

    def settled(action: Callable[[], Any]) -> float:
        action()
        if on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    rows = [_pair(rank, pair, torch, dist, device, settled) for pair in combinations(range(size), 2)]
    tensor = torch.ones(ALL_REDUCE_MIB * 2**18, device=device)
    settled(lambda: dist.all_reduce(tensor))
    tensor.fill_(1.0)
    started = settled(dist.barrier)
    elapsed_s = settled(lambda: dist.all_reduce(tensor)) - started
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
        print(MARK + json.dumps(found), flush=True)
    dist.destroy_process_group()


def _pair(rank: int, pair: tuple[int, int], torch: Any, dist: Any, device: Any, settled: Any) -> dict[str, Any] | None:
    """Measured by the first of the pair; the others wait, so that pairs do not share a cable."""
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
            taken.append(settled(action) - started)
        times[name] = statistics.median(taken)
    if not first:
        return None
    one_way_s = max(1e-9, times["push"] - times["ping"] / 2)
    return {"ranks": list(pair), "latency_ms": times["ping"] / 2 * 1e3, "bandwidth_mib_s": BANDWIDTH_MIB / one_way_s}


if __name__ == "__main__":
    main()

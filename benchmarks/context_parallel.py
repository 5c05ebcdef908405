"""Ranks that share one long document: `python -m transpooler.benchmarks.context_parallel`.

A step (loss and gradients) of the deep preset on one document of 65,536 tokens, 512 target tokens, with activation
checkpointing, on P = 1, 2 and 4 ranks of one thread each (P = 1 and 2 pinned to a core each); and one of 262,144 tokens
in chunks. Written down, of the second step of two: what a rank's memory rises by at its highest, seconds, and bytes
that it sends, measured and by the formula 2 (P - 1) / P * 4 (n + k d), n scores and k slots of width d a stage,
forward and backward. Weights are random: neither memory nor time depends on them. Results go to
benchmarks/results/context_parallel.{json,csv,md}.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from typing import Any

from transpooler.benchmarks.harness import MIB, high_water_mib, peak_memory_bytes, write_results
from transpooler.benchmarks.memory import NUM_TARGET_TOKENS, VOCAB_SIZE, build_preset
from transpooler.common import free_port

CASES = {"layers": 65_536, "chunks": 262_144}
"""What is computed again in the backward pass: source tokens."""
SIZES = (1, 2, 4)
NOTES = (
    "One document a step. Activations: the rise of a rank's peak memory in a step over what it held before, weights "
    "and gradients included, the largest of its ranks; what is freed goes back at once (MALLOC_MMAP_THRESHOLD_). With "
    "more ranks than cores seconds say nothing and are left out."
)
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
"""glibc keeps freed pieces of up to 32 MiB otherwise, and counts what it keeps, not what the step needs."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m transpooler.benchmarks.context_parallel", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rank-of", choices=CASES, help="run one rank of this case in this process (RANK, WORLD_SIZE)")
    parser.add_argument("--cases", default=",".join(CASES), help="of these alone (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.rank_of:
        print(json.dumps(measure(arguments.rank_of)))
        return 0
    results: list[dict[str, Any]] = []
    for case in arguments.cases.split(","):
        alone: dict[str, Any] | None = None
        for size in SIZES:
            found = run_ranks(case, size)
            alone = alone or found
            found["activations_share"] = round(found["activations_mib"] / alone["activations_mib"], 3)
            if found["step_s"] is not None:
                found["speedup"] = round(alone["step_s"] / found["step_s"], 2)
            results.append(found)
            print(json.dumps(found), flush=True)
    write_results("context_parallel", results, NOTES)
    return 0


def run_ranks(case: str, size: int) -> dict[str, Any]:
    """Run the ranks of a case; returns its row."""
    cores = sorted(os.sched_getaffinity(0))
    pinned = size <= len(cores)
    port = str(free_port())
    environment = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "transpooler.benchmarks.context_parallel", "--rank-of", case]
    ranks = [
        subprocess.Popen(
            ["taskset", "-c", str(cores[rank]), *command] if pinned else command,
            env=environment | HEAP | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    found = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    return {
        "computed_again": case,
        "ranks": size,
        "source_tokens": CASES[case],
        "activations_mib": max(each["activations_mib"] for each in found),
        "peak_mib": max(each["peak_mib"] for each in found),
        "step_s": max(each["step_s"] for each in found) if pinned else None,
        "sent_mib": found[0]["sent_mib"],
        "formula_mib": found[0]["formula_mib"],
        "loss": sum(each["loss"] for each in found),
    }


def measure(case: str) -> dict[str, float]:
    """Two steps of this rank's part, in this process."""
    import torch
    from torch import distributed

    from transpooler.model.layers.context_parallel import ContextGroup, Part, sharing
    from transpooler.model.layers.streaming import cutting

    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    group = ContextGroup(rank, size, distributed.group.WORLD) if size > 1 else None
    model = build_preset("model.dropout=0").train()
    config = model.config
    input_ids = torch.randint(6, VOCAB_SIZE, (1, CASES[case]))
    labels = torch.randint(6, VOCAB_SIZE, (1, NUM_TARGET_TOKENS))
    assert config.block_size is not None
    input_ids = input_ids[:, Part(rank, size, config.block_size).tokens(CASES[case], 0)]
    if rank:
        labels = torch.full((1, 1), -100)
    if case == "layers":
        model.gradient_checkpointing_enable()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # there from the start, as under ZeRO
    seconds, sent, loss = 0.0, 0.0, torch.zeros(())

    def step() -> None:
        nonlocal seconds, sent, loss
        distributed.barrier()
        start, before = time.perf_counter(), 0.0 if group is None else group.bytes_sent
        with sharing(group), cutting("always" if case == "chunks" else "without_gradients"):
            loss = model(input_ids=input_ids, labels=labels, num_items_in_batch=NUM_TARGET_TOKENS).loss
        loss.backward()
        distributed.barrier()
        seconds = time.perf_counter() - start
        sent = 0.0 if group is None else group.bytes_sent - before

    activations_mib = peak_memory_bytes(step, release=_give_back) / MIB
    numbers, length = 0, CASES[case]
    for stage in model.stages:
        numbers, length = numbers + length + stage.slots(length) * config.d_model, stage.slots(length)
    return {
        "activations_mib": round(activations_mib, 1),
        "peak_mib": round(high_water_mib(), 1),
        "step_s": round(seconds, 2),
        "sent_mib": round(sent / 2**20, 3),
        "formula_mib": round(2 * 2 * (size - 1) / size * 4 * numbers / 2**20, 3),
        "loss": float(loss.detach()),
    }


def _give_back() -> None:
    """Return freed memory to the system."""
    from transpooler.model.ops.soft_topk import cpp_backend

    cpp_backend.release()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    sys.exit(main())

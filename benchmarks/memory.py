"""Peak memory of very long documents through the deep preset: `python -m transpooler.benchmarks.memory`.

forward: 262,144 tokens through the encoder, no gradient; budget 8 GiB.
million: 1,048,576 tokens, the same; 6 GiB, Python, torch and weights (0.8) included.
train:   a step (loss, gradients, AdamW) on 65,536 tokens with activation checkpointing, 512 target tokens; 12 GiB.
chunks:  such a step on 262,144 tokens, in chunks of blocks (engine.activation_checkpointing: chunks); 6.8 GiB, of which
         weights, gradients and optimizer take 1.2.

Each case runs in a process of its own; its peak is the kernel's high-water mark of resident memory, Python and torch
included. Weights are random: memory does not depend on them. Results go to benchmarks/results/memory.{json,csv,md}.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from transpooler.benchmarks.harness import high_water_mib, write_results

if TYPE_CHECKING:
    from transpooler.model import TranspoolerForConditionalGeneration

PRESET = "deep_pyramidion"
CASES = {"forward": (262_144, 8.0), "million": (1_048_576, 6.0), "train": (65_536, 12.0), "chunks": (262_144, 6.8)}
"""Name: (source tokens, budget in GiB)."""
NUM_TARGET_TOKENS = 512
VOCAB_SIZE = 32_000
NOTES = "Wall seconds are those of a busy machine: only the peaks are results."


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m transpooler.benchmarks.memory", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--case", choices=CASES, help="run this one alone, in this process, and print its numbers")
    parser.add_argument("--tokens", type=int, help="source tokens instead of the case's own number (with --case)")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.tokens or CASES[arguments.case][0])))
        return 0
    results = []
    for case, (num_tokens, budget_gib) in CASES.items():
        command = [sys.executable, "-m", "transpooler.benchmarks.memory", "--case", case]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.append({"case": case, "budget_gib": budget_gib, **json.loads(output.splitlines()[-1])})
        peak, seconds = results[-1]["peak_gib"], results[-1]["wall_s"]
        print(f"{case}: {num_tokens:,} tokens, peak {peak:.2f} GiB of {budget_gib:g}, {seconds:.0f} s", flush=True)
    write_results("memory", results, NOTES)
    return int(any(result["peak_gib"] > result["budget_gib"] for result in results))


def build_preset(*settings: str) -> "TranspoolerForConditionalGeneration":
    """The deep preset with these settings (key=value), its weights random and the same in every process."""
    from transformers import set_seed

    from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
    from transpooler.trainer.config import load_config

    set_seed(0)
    config = TranspoolerConfig.from_architecture(
        load_config([PRESET], list(settings)).seq2seq,
        vocab_size=VOCAB_SIZE,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return TranspoolerForConditionalGeneration(config)


def measure(case: str, num_tokens: int) -> dict[str, float | int]:
    """Run a case in this process; returns its tokens, peak memory and time."""
    import torch

    from transpooler.model.layers.streaming import cutting

    model = build_preset()
    input_ids = torch.randint(6, VOCAB_SIZE, (1, num_tokens))
    before_gib = high_water_mib() / 1024
    start = time.perf_counter()
    if case not in ("train", "chunks"):
        with torch.inference_mode():
            kept = model.model.encoder.eval()(input_ids).attention_mask.sum().item()
    else:
        model.train()
        if case == "train":
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters())
        labels = torch.randint(6, VOCAB_SIZE, (1, NUM_TARGET_TOKENS))
        with cutting("always" if case == "chunks" else "without_gradients"):
            loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        kept = model.stages[-1].slots(num_tokens)
    wall_s = time.perf_counter() - start
    return {
        "source_tokens": num_tokens,
        "kept_tokens": int(kept),
        "peak_gib": round(high_water_mib() / 1024, 3),
        "before_gib": round(before_gib, 3),
        "wall_s": round(wall_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())

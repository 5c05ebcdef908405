"""A long run on real documents that is killed at random, against the same run undisturbed: equal to the bit, or not.

    python -m transpooler.benchmarks.kill_resume DATA [--steps 2000] [--kills 12] [--processes 2]
        [--work FOLDER] [--output FOLDER]

DATA is a folder with train.jsonl(.gz) and validation.jsonl(.gz) of {"article", "abstract"}. A tiny model is trained on
them twice with `transpooler train`. At random steps SIGKILL goes to one rank or to all of them, drawn from a seed; then
the same command is started again. Compared: the loss, gradient norm and ledger of every logged step, every held-out
loss, the exported weights. Results: kill_resume.json, .csv and .md; the exit code is 1 where the runs differ.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from transpooler.benchmarks.harness import RESULTS, write_results
from transpooler.trainer.metrics import TIMED, read_metrics
from transpooler.trainer.run_folder import RunFolder

MODEL = "{d_model: 48, num_heads: 2, ffn_dim: 96, block_size: 64, encoder_layers: 2, decoder_layers: 1}"


def main() -> int:
    """Prepare, train undisturbed, train with kills, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/kill_resume"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    settings = _settings(options)
    _transpooler("prepare", *settings)
    runs = {name: options.work / name for name in ("undisturbed", "killed")}
    started = time.monotonic()
    _transpooler("train", *settings, f"run={runs['undisturbed']}", "--processes", str(options.processes))
    undisturbed_s = time.monotonic() - started
    kills = _train_with_kills(options, [*settings, f"run={runs['killed']}"])
    different = _differences(runs["killed"], runs["undisturbed"])
    metrics = read_metrics(runs["killed"])
    result = {
        "equal_to_the_bit": not different,
        "differences": different,
        "steps": options.steps,
        "ranks": options.processes,
        "zero_stage": 2,
        "undisturbed_s": round(undisturbed_s),
        "killed_and_resumed_s": round(time.monotonic() - started - undisturbed_s),
        "final_ledger": metrics[-2]["ledger"],
        "last_held_out_loss": metrics[-1]["loss"],
    }
    notes = "\n".join(f"- {key}: {value}" for key, value in result.items())
    print(notes, *write_results("kill_resume", kills, notes, options.output, more=result), sep="\n")
    return int(bool(different))


def _settings(options: argparse.Namespace) -> list[str]:
    def source(split: str) -> str:
        return f"[{next(iter(sorted(options.data.glob(f'{split}.jsonl*'))))}]"

    sources = f"{{train: {source('train')}, validation: {source('validation')}}}"
    shards = options.work / "shards"
    cadence = "checkpoint_every_steps: 50, evaluate_every_steps: 200, max_validation_documents: 24, log_every_steps: 1"
    return [
        f"prepare={{output: {shards}, sources: {sources}, tokenizer: {{vocab_size: 2000}}}}",
        f"data={{shards: {shards}, max_source_tokens: 256, max_target_tokens: 48, batch_size: 8}}",
        f"model={MODEL}",
        "model.pooling=[{after_layer: 1, length: 128}, {after_layer: 2, length: 32}]",
        "model.dropout=0.1",
        "engine={zero_stage: 2, micro_batch_size: 4}",
        "optimizer={warmup_steps: 20, learning_rate: 0.001}",
        f"train={{steps: {options.steps}, tensorboard: false, {cadence}}}",
    ]


def _transpooler(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "transpooler", *arguments, "-q"], check=True)


def _train_with_kills(options: argparse.Namespace, settings: list[str]) -> list[dict[str, Any]]:
    """Train to the end through all kills; returns one row a kill."""
    draw, kills = random.Random(0), []
    run = options.work / "killed"
    command = [sys.executable, "-m", "transpooler", "train", *settings, "--processes", str(options.processes), "-q"]
    for step in sorted(draw.sample(range(20, options.steps - 20), options.kills)):
        launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while _last_step(run) < step:
            assert launcher.poll() is None, f"ended with {launcher.returncode} before step {step}"
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.2))
        ranks = _ranks(launcher)
        victims = ranks if draw.random() < 0.5 else [draw.choice(ranks)]
        for process in victims:
            process.kill()
        kills.append({"at_step": _last_step(run), "ranks_killed": len(victims), "exit_code": launcher.wait()})
        print(kills[-1], flush=True)
    subprocess.run(command, check=True)
    return kills


def _last_step(run: Path) -> int:
    """The step of the last whole line of metrics; it is read from the end, because it is polled."""
    path = RunFolder(run).metrics
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines and lines[-1].startswith(b"{") else 0


def _ranks(launcher: subprocess.Popen) -> list[psutil.Process]:
    below = psutil.Process(launcher.pid).children(recursive=True)
    return [process for process in below if process.cmdline()[2:4] == ["-m", "transpooler.launch.train"]]


def _differences(run: Path, expected: Path) -> list[str]:
    rows, expected_rows = (
        [json.dumps({key: value for key, value in row.items() if key not in TIMED}) for row in read_metrics(folder)]
        for folder in (run, expected)
    )
    found = [f"{len(rows)} lines of metrics instead of {len(expected_rows)}"] if len(rows) != len(expected_rows) else []
    found += [
        f"metrics: {ours} instead of {theirs}"
        for ours, theirs in zip(rows, expected_rows, strict=False)
        if ours != theirs
    ]
    weights, expected_weights = (
        load_file(RunFolder(folder).export / "model.safetensors") for folder in (run, expected)
    )
    return found[:5] + [name for name, value in expected_weights.items() if not torch.equal(weights[name], value)]


if __name__ == "__main__":
    sys.exit(main())

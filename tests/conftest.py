"""What several tests share: a small corpus in shards, a configuration to train on it, ranks as real processes."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT
from transpooler.common.log import set_quiet

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: its kernels then run on the CPU

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"]


@pytest.fixture(autouse=True)
def not_quiet() -> None:
    """A test that ran a command with -q must not silence the next one."""
    set_quiet(False)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Shards of 24 + 5 + 5 documents of 30 to 120 words, whose summaries repeat their first words."""
    from transpooler.data_pipeline.config import PrepareConfig, SourcesConfig, TokenizerConfig
    from transpooler.data_pipeline.prepare.prepare import prepare

    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(0)
    sources = {}
    for split, count in (("train", 24), ("validation", 5), ("test", 5)):
        path = folder / f"{split}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for number in range(count):
                words = draw.choices(WORDS, k=draw.randint(30, 120))
                row = {
                    "id": f"{split}{number}",
                    "article": " ".join(words) + ".",
                    "abstract": " ".join(words[:9]) + ".",
                }
                file.write(json.dumps(row) + "\n")
        sources[split] = (str(path),)
    prepare(
        PrepareConfig(
            output=str(folder / "shards"),
            sources=SourcesConfig(**sources),
            tokenizer=TokenizerConfig(vocab_size=300),
        )
    )
    return folder / "shards"


@pytest.fixture
def tiny_settings(shards: Path) -> list[str]:
    """key=value settings of a run that takes milliseconds a step."""
    values = {
        "data": f"{{shards: {shards}, max_source_tokens: 96, max_target_tokens: 24, batch_size: 5}}",
        "model": "{d_model: 32, num_heads: 2, ffn_dim: 64, block_size: 16, encoder_layers: 2, decoder_layers: 1}",
        "model.pooling": "[{after_layer: 1, length: 32}, {after_layer: 2, length: 8}]",
        "engine.micro_batch_size": 2,
        "optimizer": "{warmup_steps: 2, learning_rate: 0.003}",
        "train": "{steps: 40, checkpoint_every_steps: 8, evaluate_every_steps: 10, log_every_steps: 1}",
        "train.tensorboard": "false",
    }
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture
def ranks():
    """Start `command` (after `python`) as the ranks of one job, without a launcher; returns their processes."""
    from transpooler.common.net import free_port
    from transpooler.launch.ranks.local import rank_environment

    started: list[subprocess.Popen] = []

    def start(world_size: int, command: Sequence[str]) -> list[subprocess.Popen]:
        environment = rank_environment(world_size) | {
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        processes = [
            subprocess.Popen(
                [sys.executable, *command],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        started.extend(processes)
        return processes

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests run side by side and start ranks of their own; more threads than cores only cost time."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")

"""Several hosts on this machine, a small corpus, the demo's configuration cut short, and the run to compare with."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cluster.lab import NEEDED, ROOT, Lab, lab, wait_for, why_not
from trainer.metrics import read_metrics

STEPS = 30
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"]
DEADLINE_S = 400
COMPARED = ("step", "loss", "grad_norm", "learning_rate", "ledger")


@dataclass
class Runs:
    """Runs of one configuration in one folder; all must give what the undisturbed one gave."""

    folder: Path
    settings: list[str]

    def arguments(self, name: str, *more: str) -> list[str]:
        """Settings of the run `name`."""
        return [*self.settings, f"run={self.folder / name}", *more]

    def command(self, target: str, name: str, *more: str) -> list[str]:
        """`transpooler launch TARGET` of the run `name`."""
        return [sys.executable, "-m", "launch", "launch", target, *self.arguments(name, *more)]

    def events(self, name: str) -> list[dict]:
        path = self.folder / name / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def step(self, name: str) -> int:
        """The newest step in the metrics of a run."""
        return max((row["step"] for row in read_metrics(self.folder / name)), default=0)

    def wait_for_step(self, name: str, step: int) -> None:
        wait_for(lambda: self.step(name) >= step, f"step {step} of {name}", DEADLINE_S)

    def assert_same(self, name: str, other: str = "undisturbed") -> None:
        """Metrics of every step and final weights are equal to the bit."""
        rows, expected = (
            [{key: row[key] for key in COMPARED} for row in self._train_rows(each)] for each in (name, other)
        )
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert rows == expected
        weights, wanted = (load_file(self.folder / each / "export" / "model.safetensors") for each in (name, other))
        assert weights.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(weights[key], value), key

    def _train_rows(self, name: str) -> list[dict]:
        return [row for row in read_metrics(self.folder / name) if row["split"] == "train"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Lab]:
    """A head and two workers."""
    if reason := why_not(NEEDED):
        pytest.skip(reason)
    with lab(workers=2) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The demo's fine-tuning configuration on 24 documents, and its undisturbed run: two ranks on this machine."""
    folder = tmp_path_factory.mktemp("cluster")
    draw, sources = random.Random(0), {}
    for split, count in (("train", 24), ("validation", 2), ("test", 2)):
        path = folder / f"{split}.jsonl"
        texts = [draw.choices(WORDS, k=draw.randint(30, 120)) for _ in range(count)]
        rows = [{"article": " ".join(words) + ".", "abstract": " ".join(words[:9]) + "."} for words in texts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sources[split] = [str(path)]
    config = folder / "run.yaml"
    config.write_text(
        json.dumps(
            {
                "prepare": {"output": str(folder / "shards"), "sources": sources, "tokenizer": {"vocab_size": 300}},
                "data": {"shards": str(folder / "shards"), "batch_size": 4, "bucket_batches": 1},
                "engine": {"micro_batch_size": 1},
                "optimizer": {"warmup_steps": 5},
                "train": {
                    "steps": STEPS, "checkpoint_every_steps": 5, "keep_last_checkpoints": 2, "log_every_steps": 1,
                    "evaluate_every_steps": 0, "tensorboard": False,
                },
                "cluster": {"heartbeat_timeout_s": 10, "restart_delay_s": 1, "max_restart_delay_s": 4},
            }
        ),
        encoding="utf-8",
    )
    presets = [str(ROOT / "configs" / name) for name in ("demo.yaml", "demo_finetune.yaml")]
    found = Runs(folder, [*presets, str(config)])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in (
        [sys.executable, "-m", "launch", "prepare", *found.settings],
        found.command("local", "undisturbed", "cluster.processes_per_node=2"),
    ):
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr[-3000:]
    return found


@pytest.fixture(scope="session")
def hostfile(cluster: Lab, runs: Runs) -> str:
    """The workers, a rank each."""
    path = runs.folder / "hosts"
    path.write_text(f"{cluster.host(1)} slots=1\n{cluster.host(2)} slots=1\n")
    return f"cluster.hostfile={path}"

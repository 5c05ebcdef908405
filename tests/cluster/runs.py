"""Runs of one configuration, and what "the same" means for them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.cluster.lab import wait_for
from transpooler.trainer.metrics import read_metrics

STEPS = 40
COMPARED = ("step", "loss", "grad_norm", "learning_rate", "ledger")
DEADLINE_S = 400


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
        return [sys.executable, "-m", "transpooler", "launch", target, *self.arguments(name, *more)]

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
            [{key: row[key] for key in COMPARED} for row in self.train_rows(each)] for each in (name, other)
        )
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert rows == expected
        weights, wanted = (load_file(self.folder / each / "export" / "model.safetensors") for each in (name, other))
        assert weights.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(weights[key], value), key

    def train_rows(self, name: str) -> list[dict]:
        """Lines of metrics of training steps."""
        return [row for row in read_metrics(self.folder / name) if row["split"] == "train"]

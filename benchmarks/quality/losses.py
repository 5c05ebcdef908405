"""Held-out loss of each document under the run's objective: intervals need them one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from transpooler.common import progress, read_json, write_json
from transpooler.data_pipeline.loading.examples import ExampleMaker
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.trainer.config import Config
from transpooler.trainer.evaluation.losses import derangement
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.weights.models import load_model

FILE_NAME = "losses.json"
MEASURED = {"loss_sum", "shuffled_loss_sum", "target_tokens"}
NOISE_SEED = 0
"""All runs of a study take the same tokens out of the same documents, whatever their seed."""


def is_current(path: Path, run: Path) -> bool:
    """Whether a result is there and belongs to the run's model: it is no older than that."""
    return path.is_file() and path.stat().st_mtime_ns >= RunFolder(run).export_config.stat().st_mtime_ns


def measure_losses(run: Path, config: Config) -> dict[str, np.ndarray]:
    """Measure each evaluated document's loss_sum, shuffled_loss_sum (with another's source) and target_tokens.

    Returns (N,) float64 arrays by these names, and remembers them in the run.
    """
    path = RunFolder(run).evaluation(config.evaluation.split).root / FILE_NAME
    stored = read_json(path) if is_current(path, run) else {}
    if set(stored) != MEASURED:  # an older version wrote less
        stored = _measure(run, config)
        write_json(path, stored)
    return {name: np.array(stored[name], dtype=np.float64) for name in sorted(MEASURED)}


@torch.no_grad()
def _measure(run: Path, config: Config) -> dict[str, list[Any]]:
    model, tokenizer = load_model(RunFolder(run).export)
    dataset = ShardDataset(Path(config.data.shards) / config.evaluation.split)
    count = min(len(dataset), config.evaluation.max_documents or len(dataset))
    maker = ExampleMaker(config.data, tokenizer, NOISE_SEED)
    examples = [maker.example(dataset.read(number), dataset.key(number), 0) for number in range(count)]
    partners = derangement(count, NOISE_SEED)

    def loss_sum(source: np.ndarray, target: np.ndarray) -> float:
        ids, labels = (torch.from_numpy(tokens)[None].to(model.device) for tokens in (source, target))
        return float(model(input_ids=ids, labels=labels, num_items_in_batch=1).loss)

    sums, shuffled = [], []
    with progress(f"losses of {run.name}", count) as bar:
        for (source, target), partner in zip(examples, partners, strict=True):
            sums.append(loss_sum(source, target))
            shuffled.append(loss_sum(examples[partner][0], target))
            bar.advance()
    return {"loss_sum": sums, "shuffled_loss_sum": shuffled, "target_tokens": [len(target) for _, target in examples]}

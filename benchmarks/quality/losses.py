"""Held-out loss of each document under the run's objective: intervals need them one by one."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from transpooler.common import progress
from transpooler.data_pipeline.loading.examples import ExampleMaker
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.trainer.config import Config
from transpooler.trainer.evaluation.losses import derangement
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.weights.models import load_model

NOISE_SEED = 0
"""All runs of a study take the same tokens out of the same documents, whatever their seed."""


def fingerprint_documents(config: Config) -> str:
    """SHA-256 of what a run is evaluated on, and of the lengths of what it is trained on; knows no paths."""
    data, digest = config.data, hashlib.sha256()
    if not data.mixture:
        train = ShardDataset(Path(data.shards) / data.train_split)
        digest.update(train.index["tokenizer_fingerprint"].encode())
        digest.update(np.ascontiguousarray(train.source_lengths).tobytes())
    dataset = _evaluated(config)
    for number in range(_count(dataset, config)):
        document = dataset.read(number)
        digest.update(document.source.tobytes())
        if document.target is not None:
            digest.update(document.target.tobytes())
    return digest.hexdigest()


def _evaluated(config: Config) -> ShardDataset:
    return ShardDataset(Path(config.data.shards) / config.evaluation.split)


def _count(dataset: ShardDataset, config: Config) -> int:
    return min(len(dataset), config.evaluation.max_documents or len(dataset))


@torch.no_grad()
def measure_losses(run: Path, config: Config, keep: float | None = None) -> dict[str, list[float]]:
    """Measure each evaluated document's loss_sum, shuffled_loss_sum (with another's source) and target_tokens.

    keep: what the model keeps of each document, tokens or a share; None: its largest budget.
    """
    model, tokenizer = load_model(RunFolder(run).export, keep)
    dataset = _evaluated(config)
    count = _count(dataset, config)
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

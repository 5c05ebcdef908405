"""Held-out loss of each document: intervals need them one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import read_json, write_json
from common.progress import progress
from data_pipeline.shards import ShardDataset
from trainer.config import Config
from trainer.models import load_model
from trainer.summarize import pad_batch

FILE_NAME = "losses.json"


def document_losses(run: Path, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Summed loss and number of target tokens of each evaluated document, (N,) float64 each; remembered in the run."""
    path = run / "evaluation" / config.evaluation.split / FILE_NAME
    if not path.is_file() or path.stat().st_mtime_ns < (run / "export" / "config.json").stat().st_mtime_ns:
        write_json(path, _measure(run, config))
    stored = read_json(path)
    return np.array(stored["loss_sum"]), np.array(stored["target_tokens"], dtype=np.float64)


@torch.no_grad()
def _measure(run: Path, config: Config) -> dict[str, list[Any]]:
    model, tokenizer = load_model(run / "export")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    dataset = ShardDataset(Path(config.data.shards) / config.evaluation.split)
    count = min(len(dataset), config.evaluation.max_documents or len(dataset))
    sums, lengths = [], []
    with progress(f"losses of {run.name}", count) as bar:
        for number in range(count):
            document = dataset.read(number)
            assert document.target is not None  # `evaluate` looked at all of them
            source = [*document.source[: config.data.max_source_tokens - 1].tolist(), tokenizer.eos_token_id]
            target = [*document.target[: config.data.max_target_tokens - 1].tolist(), tokenizer.eos_token_id]
            input_ids, attention_mask = pad_batch([source], tokenizer.pad_token_id, model.device)
            labels = torch.tensor([target], device=model.device)
            summed = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, num_items_in_batch=1)
            sums.append(float(summed.loss))
            lengths.append(len(target))
            bar.advance()
    return {"loss_sum": sums, "target_tokens": lengths}

"""A corpus, a model and a study that are small enough to be prepared and trained in seconds."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"]
MODEL = {"d_model": 32, "num_heads": 2, "ffn_dim": 64, "block_size": 16, "encoder_layers": 2, "decoder_layers": 1}
STUDY: dict[str, Any] = {
    "name": "tiny",
    "budget": {"steps": 12},
    "settings": {
        "data": {"max_source_tokens": 64, "max_target_tokens": 12, "batch_size": 4},
        "model": MODEL,
        "engine": {"micro_batch_size": 4, "zero_stage": 0},
        "optimizer": {"warmup_steps": 2, "learning_rate": 0.003},
        "train": {"evaluate_every_steps": 4, "checkpoint_every_steps": 2, "log_every_steps": 2, "tensorboard": False},
        "generation": {"num_beams": 1, "max_new_tokens": 6},
    },
    "arms": {
        "blockwise": None,
        "warm": {
            "model": {"pooling": [{"after_layer": 2, "length": 8}]},
            "start": {"arm": "blockwise", "share": 0.5},
        },
    },
}


def write_corpus(folder: Path, documents: dict[str, int]) -> dict[str, str]:
    """Write a .jsonl file for each split (name -> number of documents); returns their paths.

    Documents have 30 to 120 words; their summaries repeat the first nine.
    """
    draw, paths = random.Random(0), {split: str(folder / f"{split}.jsonl") for split in documents}
    for split, count in documents.items():
        with open(paths[split], "w", encoding="utf-8") as file:
            for number in range(count):
                words = draw.choices(WORDS, k=draw.randint(30, 120))
                article, abstract = (" ".join(part) + "." for part in (words, words[:9]))
                file.write(json.dumps({"id": f"{split}{number}", "article": article, "abstract": abstract}) + "\n")
    return paths

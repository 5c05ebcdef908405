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
        "optimizer": {"warmup_steps": 2, "learning_rate": 0.0030000000123},  # more digits than are rounded to
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


def write_llama(shards: Path, folder: Path) -> Path:
    """Save a small random Llama and the shards' tokenizer as `transformers` does; returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from transpooler.data_pipeline.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(shards / "tokenizer")
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **special))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

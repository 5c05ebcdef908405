"""Where a configuration may differ from that of the run it resumes, or of the model it starts from."""

import dataclasses

from transpooler.model.architecture import Architecture
from transpooler.trainer.config.root import Config

_NO_SHAPES = ("dropout", "init_std", "exploration_noise")
"""Fields of the architecture that shape no weight and no computation at inference."""
_OF_POSITIONS = ("sinusoid_steps", "position_offset", "relative_buckets", "relative_max_distance", "relative_per_layer")
"""Fields that mean something with the weights' own kind of positions alone."""
FREE_WHEN_STARTING = (
    *(
        *_NO_SHAPES,
        "positions",
        "max_positions",
        "block_positions",
        *("block_size", "stagger_blocks"),
        "decoder_start_token_id",
        "vocab_rows",
    ),
    *("pooling", "pooling_base", "pooling_norm", "scorer_init_std"),
)
"""Fields of the architecture in which a run may differ from the weights that it starts from."""
FREE_WHEN_RESUMING = (
    *(f"model.{name}" for name in _NO_SHAPES),
    *("data.shards", "data.prefetch_steps", "data.workers", "data.cache", "data.cache_gib", "data.fetch_ahead_steps"),
    *("data.fetch_retries", "data.max_damaged_documents"),
)
"""Keys of `model` and `data` that a resumed run may change, because they do not decide what it learns."""


def resume_conflicts(before: Config, after: Config) -> list[str]:
    """Keys whose values a resumed run must keep, and does not."""
    pairs = [
        ("seed", before.seed, after.seed),
        ("train.init_from", before.train.init_from, after.train.init_from),
        ("train.freeze", before.train.freeze, after.train.freeze),
        ("train.lora", before.train.lora, after.train.lora),
        ("train.stages", before.train.stages, after.train.stages),
        ("optimizer.name", before.optimizer.name, after.optimizer.name),
        ("optimizer.groups", before.optimizer.groups, after.optimizer.groups),
    ]
    for section in ("model", "data"):
        old, new = getattr(before, section), getattr(after, section)
        if type(old) is not type(new):
            pairs.append((f"{section}.kind", old.kind, new.kind))
            continue
        for entry in dataclasses.fields(old):
            pairs.append((f"{section}.{entry.name}", getattr(old, entry.name), getattr(new, entry.name)))
    return [key for key, old, new in pairs if old != new and key not in FREE_WHEN_RESUMING]


def starting_conflicts(weights: Architecture, run: Architecture) -> list[str]:
    """In words, where a run's architecture contradicts that of the weights from which it starts."""
    names = [entry.name for entry in dataclasses.fields(Architecture) if entry.name not in FREE_WHEN_STARTING]
    if weights.positions != run.positions:
        names = [name for name in names if name not in _OF_POSITIONS]
    pairs = {name: (_effective(weights, name), _effective(run, name)) for name in names}
    return [f"model.{name} is {new!r}, in the weights {old!r}" for name, (old, new) in pairs.items() if old != new]


def _effective(model: Architecture, name: str) -> object:
    """The value of a field, what null stands for filled in."""
    meant = {
        "head_dim": model.head_width,
        "kv_heads": model.kv_heads or model.num_heads,
        "attention_scale": model.head_width**-0.5,
        "embedding_scale": model.d_model**0.5 if model.positions == "sinusoidal" else 1.0,
    }
    value = getattr(model, name)
    return meant.get(name) if value is None else value

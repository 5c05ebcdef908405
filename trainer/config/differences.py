"""Where a configuration may differ from that of the run it resumes, or of the model it starts from."""

import dataclasses

from transpooler.trainer.config.root import Config

_NO_SHAPES = ("dropout", "init_std")
"""Fields of the architecture that shape no weight and no computation at inference."""
FREE_WHEN_STARTING = (
    *(*_NO_SHAPES, "block_size", "max_positions"),
    *("pooling", "pooling_base", "pooling_norm", "scorer_init_std"),
)
"""Fields of the architecture in which a run may differ from an export that it starts from."""
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
        ("optimizer.name", before.optimizer.name, after.optimizer.name),
    ]
    for section in ("model", "data"):
        old, new = getattr(before, section), getattr(after, section)
        if type(old) is not type(new):
            pairs.append((f"{section}.kind", old.kind, new.kind))
            continue
        for entry in dataclasses.fields(old):
            pairs.append((f"{section}.{entry.name}", getattr(old, entry.name), getattr(new, entry.name)))
    return [key for key, old, new in pairs if old != new and key not in FREE_WHEN_RESUMING]

"""How a model folder's summaries are generated: the run's `generation` section, as `transformers` stores it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpooler.common import read_json
from transpooler.trainer.config.evaluation import FORCED, GenerationConfig

if TYPE_CHECKING:
    import transformers

DEFAULTS = {"num_beams": 1, "min_new_tokens": 0, "length_penalty": 1.0, "no_repeat_ngram_size": 0}
"""What `transformers` does where its file says nothing."""
PARTS = (".", "reader")
"""Where in a model folder that file lies: a compressor's is that of its reader, which writes the summaries."""


def set_generation(target: "transformers.GenerationConfig", settings: GenerationConfig) -> None:
    """Make the run's `generation` section the defaults of `model.generate`."""
    for name, value in settings.arguments().items():
        setattr(target, name, value)
    target.min_new_tokens = settings.min_new_tokens or None


def stored_generation(folder: Path) -> dict[str, Any]:
    """The `generation` section that a model folder carries; empty if it carries none."""
    paths = (folder / part / "generation_config.json" for part in PARTS)
    stored = next((read_json(path) for path in paths if path.is_file()), None)
    if not isinstance(stored, dict):
        return {}
    found = {name: stored.get(name) or default for name, default in DEFAULTS.items()}
    found |= {name: stored[name] for name in FORCED if isinstance(stored.get(name), int)}
    found |= {"suppress_tokens": tuple(stored["suppress_tokens"])} if stored.get("suppress_tokens") else {}
    return found | ({"max_new_tokens": stored["max_new_tokens"]} if stored.get("max_new_tokens") else {})

"""How a model folder's summaries are generated: the run's `generation` section, as `transformers` stores it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpooler.common import UserError, read_json
from transpooler.trainer.config.evaluation import FORCED, GenerationConfig
from transpooler.trainer.config.load import section_from_dict

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
    """The `generation` section that a model folder carries; empty if it carries none. UserError: it is wrong."""
    paths = (folder / part / "generation_config.json" for part in PARTS)
    if (path := next((path for path in paths if path.is_file()), None)) is None:
        return {}
    if not isinstance(stored := read_json(path), dict):
        raise UserError(f"{path}: is no mapping of settings; export the model again")
    found = {name: stored.get(name) or default for name, default in DEFAULTS.items()}
    found |= {name: stored[name] for name in FORCED if isinstance(stored.get(name), int)}
    found |= {"suppress_tokens": stored["suppress_tokens"]} if stored.get("suppress_tokens") else {}
    found |= {"max_new_tokens": stored["max_new_tokens"]} if stored.get("max_new_tokens") else {}
    try:
        section = section_from_dict(GenerationConfig, found)
    except UserError as error:
        raise UserError(*(f"{path}: {line}" for line in str(error).splitlines())) from None
    return {name: getattr(section, name) for name in found}

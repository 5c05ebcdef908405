"""Models from weights on disk or from a seed. Both come back in float32 on the CPU, in training mode."""

import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from common.errors import UserError
from trainer.config import Config


def build_model(config: Config, tokenizer: Any, sharded: AbstractContextManager | None = None) -> Any:
    """A model of `config.model` over the tokenizer's vocabulary, weights seeded by `config.seed`.

    Each module's weights depend on the seed and its name alone, so they are the same whatever the ranks, and whether or
    not the model is built in the context `sharded` (trainer.engine.sharded_init), where no rank ever holds it whole.
    The global random state is left as it was.
    """
    import torch
    from transformers.initialization import no_init_weights

    from model import TranspoolerForConditionalGeneration
    from trainer.engine import gathered

    with torch.random.fork_rng():
        with no_init_weights(), sharded or nullcontext():
            model = TranspoolerForConditionalGeneration(model_config(config, tokenizer))
        model.tie_weights()
        done: set[int] = set()
        for name, module in model.named_modules():
            parameters = [item for item in module.parameters(recurse=False) if id(item) not in done]
            if parameters:
                done.update(map(id, parameters))
                torch.manual_seed(zlib.crc32(f"{config.seed}/{name}".encode()))
                with gathered(parameters):
                    model._init_weights(module)
        return model.train()


def model_config(config: Config, tokenizer: Any) -> Any:
    """The `TranspoolerConfig` of a run."""
    from model import TranspoolerConfig

    return TranspoolerConfig.from_architecture(
        config.model,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def load_model(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of an exported folder, in evaluation mode (UserError if it holds none)."""
    import transformers
    from safetensors import SafetensorError

    from data_pipeline.tokenizer import load_tokenizer
    from model import TranspoolerForConditionalGeneration

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported model there (no config.json); train one or run `transpooler export`")
    # One small file loads at once: its progress bar would only be in the way of ours.
    transformers.utils.logging.disable_progress_bar()
    try:
        model = TranspoolerForConditionalGeneration.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot load the model: {str(error).splitlines()[0]}; export it again") from error
    return model.eval(), load_tokenizer(folder)

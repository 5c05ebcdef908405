"""Models from weights on disk or from a seed. Both come back in float32 on the CPU, in training mode."""

from pathlib import Path
from typing import Any

from common.errors import UserError
from trainer.config import Config


def build_model(config: Config, tokenizer: Any) -> Any:
    """A model of `config.model` over the tokenizer's vocabulary, weights seeded by `config.seed`.

    The global random state is left as it was.
    """
    import torch

    from model import TranspoolerConfig, TranspoolerForConditionalGeneration

    model_config = TranspoolerConfig.from_architecture(
        config.model,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return TranspoolerForConditionalGeneration(model_config).train()


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

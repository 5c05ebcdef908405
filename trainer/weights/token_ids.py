"""Token ids that settings name, against the vocabulary of the model that reads or writes them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transpooler.common import UserError
from transpooler.data_pipeline.config import DataConfig
from transpooler.trainer.config.evaluation import FORCED, GenerationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from transpooler.model import TranspoolerConfig
    from transpooler.model.compressor.config import CompressorConfig


def check_token_ids(
    model: "TranspoolerConfig | CompressorConfig", generation: GenerationConfig, data: DataConfig | None = None
) -> None:
    """UserError: a setting names ids for which the model has no embedding; a line for each such setting."""
    problems = [
        f"{name} has {max(ids)}; the model's vocabulary has {rows:,} tokens, with ids from 0"
        for name, ids, rows in _named_ids(model, generation, data)
        if ids and max(ids) >= rows
    ]
    if problems:
        raise UserError(*problems)


def _named_ids(
    model: "TranspoolerConfig | CompressorConfig", generation: GenerationConfig, data: DataConfig | None
) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(setting, ids, number of ids that there are)."""
    written = model.vocab_size
    read = getattr(model, "encoder", model).vocab_size  # a compressor's encoder has a vocabulary of its own
    for name in FORCED:
        value = getattr(generation, name)
        yield f"generation.{name}", () if value is None else (value,), written
    yield "generation.suppress_tokens", generation.suppress_tokens, written
    if data is not None:
        yield "data.source_prefix_ids", data.source_prefix_ids, read
        yield "data.target_prefix_ids", data.target_prefix_ids, written


def needed_rows(tokenizer: "PreTrainedTokenizerFast", *, padding: bool = True) -> int:
    """Rows that a table of embeddings must have for the tokens of texts, for </s> and, unless it is false, padding."""
    others = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    needed: Any = {tokenizer.eos_token_id, *([tokenizer.pad_token_id] if padding else [])}
    return 1 + max(id for id in tokenizer.get_vocab().values() if id not in others or id in needed)

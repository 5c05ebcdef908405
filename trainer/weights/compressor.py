"""A compressor of a run: its configuration from the run's, and where the tensors of stock weights belong."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpooler.common import UserError
from transpooler.data_pipeline.objectives import OBJECTIVES
from transpooler.model.compressor.architecture import DOCUMENT, CompressorArchitecture
from transpooler.trainer.config import Config
from transpooler.trainer.weights.export_code import COMPRESSOR_ENCODER, write_code
from transpooler.trainer.weights.token_ids import needed_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from transpooler.model.compressor.config import CompressorConfig
    from transpooler.model.compressor.modeling import CompressorForConditionalGeneration


def compressor_config(config: Config, tokenizer: "PreTrainedTokenizerFast") -> "CompressorConfig":
    """The compressor of a run as `transformers` configures it.

    The stock models keep their vocabulary, unless the run needs tokens that the tokenizer had to be given.
    """
    from transpooler.model.compressor.config import CompressorConfig

    model = config.model
    assert isinstance(model, CompressorArchitecture)
    stored = min(model.encoder["vocab_size"], model.reader["vocab_size"])
    needs_all = needed_rows(tokenizer, padding=False) > stored
    needs_all = needs_all or not OBJECTIVES[config.data.objective].needs_summaries
    rows = len(tokenizer) if needs_all else 0
    encoder, reader = ({**part, "vocab_size": max(part["vocab_size"], rows)} for part in (model.encoder, model.reader))
    encoder["num_hidden_layers"] = model.num_layers
    if (kinds := encoder.get("layer_types")) is not None:
        encoder["layer_types"] = kinds[: model.num_layers]
    prefix, prompt = prompt_ids(model, tokenizer)
    return CompressorConfig(
        encoder=encoder,
        reader=reader,
        pooling=[dataclasses.asdict(stage) for stage in model.pooling],
        prefix_ids=prefix,
        prompt_ids=prompt,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{name: getattr(model, name) for name in ("block_size", "causal", "pooling_base", "scorer_init_std")},
        **{name: getattr(model, name) for name in ("exploration_noise", "carry_embeddings")},
    )


def prompt_ids(model: CompressorArchitecture, tokenizer: "PreTrainedTokenizerFast") -> tuple[list[int], list[int]]:
    """Token ids of the prompt before the document and after it; special tokens written in it are special."""
    text = model.prompt
    if model.chat:
        if not tokenizer.chat_template:
            raise UserError("model.chat is true, but the tokenizer has no chat template; write the prompt out")
        said = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    before, _, after = text.partition(DOCUMENT)
    settings: Any = {"add_special_tokens": False, "split_special_tokens": False}
    return tokenizer(before, **settings).input_ids, tokenizer(after, **settings).input_ids


def stock_names(stored: Iterable[str], num_layers: int, part: str) -> Iterator[tuple[str, str]]:
    """(our name, stored name) of the tensors of a causal language model that `part` (encoder, reader) takes."""
    for name in stored:
        if part == "reader":
            yield f"reader.{name}", name
        elif name.startswith("model.") and not _is_above(name, num_layers):
            yield f"encoder.stock.{name.removeprefix('model.')}", name


def save_compressor(model: "CompressorForConditionalGeneration", folder: Path) -> list[Path]:
    """Write config.json, encoder/ (stock layers, poolers, adapter, code) and reader/, a folder that anything loads.

    Returns the folders of the two, which need a tokenizer, too.
    """
    model.config.save_pretrained(folder)
    model.encoder.save_pretrained(folder / "encoder")
    write_code(folder / "encoder", COMPRESSOR_ENCODER)
    model.reader.save_pretrained(folder / "reader")
    return [folder / "encoder", folder / "reader"]


def load_compressor(folder: Path) -> tuple["CompressorForConditionalGeneration", dict[str, Any]]:
    """What `save_compressor` wrote, in the dtype of its files, and transformers' report of the loading."""
    from transformers import AutoModelForCausalLM

    from transpooler.model.compressor.encoder import CompressorEncoder
    from transpooler.model.compressor.modeling import CompressorForConditionalGeneration

    settings: Any = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    classes: Any = CompressorEncoder, AutoModelForCausalLM  # the library's annotations know no loading info
    encoder, found = classes[0].from_pretrained(folder / "encoder", **settings)
    reader, more = classes[1].from_pretrained(folder / "reader", **settings)
    report = {name: [*found[name], *more[name]] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return CompressorForConditionalGeneration(encoder.config, encoder, reader), report


def _is_above(name: str, num_layers: int) -> bool:
    parts = name.split(".")
    return parts[1] == "layers" and int(parts[2]) >= num_layers

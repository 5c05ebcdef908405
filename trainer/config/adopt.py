"""What the weights that a run starts from say about its configuration, so that nobody has to write it out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from transpooler.common import UserError
from transpooler.data_pipeline.config import DataConfig
from transpooler.model.architecture import Architecture
from transpooler.trainer.config.evaluation import FORCED
from transpooler.trainer.run_folder import RunFolder

_NOT_OF_THE_MODEL = ("architectures", "transformers_version", "_name_or_path", "dtype", "use_cache", "auto_map")

_DECODER_ONLY = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"}
"""Keys that every decoder-only model has in its config.json, and BART and its kin have under other names."""


def adopt_weights(values: dict[str, Any]) -> None:
    """Fill in what follows from train.init_from; what is written stays. A run that has begun needs the weights no more.

    UserError where the weights cannot be read.
    """
    train = values.get("train")
    if not isinstance(train, Mapping) or not isinstance(train.get("init_from"), str):
        return
    model = values.setdefault("model", {})
    if not all(isinstance(values.get(name) or {}, dict) for name in ("model", "data", "generation", "prepare")):
        return  # whoever checks types says so
    saved, find_folder = _saved(values), cache(lambda: _find_folder(train["init_from"]))
    if "kind" not in model and (kind := _kind(saved, find_folder)) is not None:
        model["kind"] = kind
    prepare = values.get("prepare") or {}
    if not prepare.get("tokenizer"):  # documents are prepared with the weights' own, unless another is spoken of
        values["prepare"] = prepare | {"tokenizer": {"path": str(find_folder())}}
    if model.get("kind") == "compressor":
        _adopt_causal(model, train, saved)
    elif model.get("kind", "seq2seq") == "seq2seq":
        _adopt_seq2seq(values, model, saved, find_folder)


def _find_folder(source: str) -> Path:
    from transpooler.trainer.config.families.hub import find_weights_if_there

    return find_weights_if_there(source)


def _kind(saved: Mapping[str, Any], find_folder: Callable[[], Path]) -> str | None:
    """Which kind of model the run has, or can make of the weights; None where that is not known."""
    if "model" in saved:
        return (saved["model"] or {}).get("kind")
    from transpooler.trainer.config.families.read import read_kind

    return read_kind(find_folder())


def _adopt_seq2seq(
    values: dict[str, Any], model: dict[str, Any], saved: Mapping[str, Any], find_folder: Callable[[], Path]
) -> None:
    if {entry.name for entry in fields(Architecture)} <= model.keys():
        return
    if "model" in saved:
        for section in ("model", "generation", "data"):
            known = saved.get(section) or {}
            kept = known if section == "model" else {key: known[key] for key in _OF_WEIGHTS[section] if key in known}
            values[section] = kept | (values.get(section) or {})
        return
    folder = find_folder()
    if not folder.exists():  # an earlier stage may still have to write it
        return
    from transpooler.trainer.config.families.read import read_pretrained

    found = read_pretrained(folder)
    stages = [asdict(stage) for stage in found.fields.get("pooling", ())]
    adopted = found.fields | ({"pooling": stages} if stages else {})
    if adopted.get("positions") == "learned" and model.get("block_positions") != "block":
        adopted["max_positions"] = max(adopted["max_positions"], *_longest(values.get("data") or {}))
    values["model"] = adopted | model
    if found.generation:
        values["generation"] = found.generation | (values.get("generation") or {})
    tokenizer = ((values.get("prepare") or {}).get("tokenizer") or {}).get("path") or folder
    if prefixes := _prefixes(tokenizer, found.generation.get("forced_bos_token_id")):
        values["data"] = prefixes | (values.get("data") or {})


def _prefixes(tokenizer_folder: str | Path, first_of_targets: int | None) -> dict[str, list[int]]:
    """How sources and targets begin in the weights' own training: targets as sources where that is with <s>."""
    from transpooler.data_pipeline.text_tokens import leading_special_ids
    from transpooler.data_pipeline.tokenizer import load_tokenizer

    found = {} if first_of_targets is None else {"target_prefix_ids": [first_of_targets]}
    try:
        tokenizer = load_tokenizer(tokenizer_folder)
        prefix = leading_special_ids(tokenizer)
    except UserError:  # weights alone: whoever needs their tokenizer says that it is not there
        return found
    if prefix == [tokenizer.bos_token_id]:
        found = {"target_prefix_ids": prefix} | found
    return found | ({"source_prefix_ids": prefix} if prefix else {})


def _longest(data: Mapping[str, Any]) -> Iterator[int]:
    """The limits of documents and summaries, in tokens: a table of positions is extended up to them."""
    for name in ("max_source_tokens", "max_target_tokens"):
        if isinstance(value := data.get(name, getattr(DataConfig, name)), int):
            yield value


_OF_WEIGHTS = {
    "generation": (*FORCED, "suppress_tokens"),
    "data": ("source_prefix_ids", "target_prefix_ids"),
}
"""Keys of other sections that weights fill in."""


def _adopt_causal(model: dict[str, Any], train: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    reader, known = train["init_from"], saved.get("model") or {}
    for key, source in (("reader", reader), ("encoder", train.get("init_encoder_from") or reader)):
        if key not in model:
            model[key] = known[key] if key in known else _read_causal_config(str(source), key)


def _read_causal_config(source: str, part: str) -> dict[str, Any]:
    """config.json of a causal language model, defaults filled in; of a compressor, that of its part."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from transpooler.model.compressor.config import CompressorConfig
    from transpooler.trainer.config.families.hub import find_weights
    from transpooler.trainer.config.families.read import is_causal

    try:
        AutoConfig.register(CompressorConfig.model_type, CompressorConfig, exist_ok=True)
        config: Any = AutoConfig.from_pretrained(find_weights(source))
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.init_from {source}: no model there: {reason}") from error
    if isinstance(config, CompressorConfig):
        config = getattr(config, part)
    values = config.to_dict()
    if not is_causal(config.model_type) or not values.keys() >= _DECODER_ONLY:
        raise UserError(
            f"train.init_from {source}: holds a {config.model_type!r} model, which is no causal language model; give "
            "one such as Llama, SmolLM2, Qwen, Mistral, Gemma 3 text or OLMo 2"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"train.init_from {source}: its weights are quantised; give the full ones")
    return {name: value for name, value in values.items() if name not in _NOT_OF_THE_MODEL}


def _saved(values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with which the run was begun; empty if there is none."""
    from omegaconf import OmegaConf

    path = RunFolder(str(values.get("run", ""))).config
    if not path.is_file():
        return {}
    saved: Any = OmegaConf.to_container(OmegaConf.load(path))
    return saved if isinstance(saved, dict) else {}

"""The first weights of a run from a model on disk: our export, whatever its pooling, or a BART of `transformers`.

Tensors are read one at a time from safetensors, by rank 0 alone where ZeRO 3 spreads the model, so no rank ever holds
the whole of it. Every tensor that has no counterpart is reported.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transpooler.common.errors import UserError
from transpooler.common.log import say
from transpooler.trainer.config import Config
from transpooler.trainer.config.differences import FREE_WHEN_STARTING
from transpooler.trainer.weights.models import stored_config

BART_LAYER = {
    "self_attn": "self_attention",
    "self_attn_layer_norm": "self_residual.norm",
    "encoder_attn": "cross_attention",
    "encoder_attn_layer_norm": "cross_residual.norm",
    "fc1": "ffn.fc_in",
    "fc2": "ffn.fc_out",
    "final_layer_norm": "ffn_residual.norm",
}
"""Parts of BART's layers, and ours. The encoder's self-attention is called `attention` here."""
BART_POSITION_OFFSET = 2
"""BART's tables of positions begin with two rows that stand for no position."""


def start_from(model: nn.Module, folder: Path, config: Config, tokenizer_fingerprint: str) -> None:
    """Copy what fits from the model in `folder`; UserError where tokenizer or architecture are not this run's."""
    from transpooler.data_pipeline.tokenizer import fingerprint, load_tokenizer

    values = stored_config(folder)
    kind = values.get("model_type")
    if fingerprint(load_tokenizer(folder)) != tokenizer_fingerprint:
        raise UserError(
            f"train.init_from {folder}: its tokenizer is not that of {config.data.shards}; prepare the documents "
            f"with prepare.tokenizer.path={folder}"
        )
    kinds = {"transpooler": _check_export, "bart": _check_bart}
    if kind not in kinds:
        raise UserError(f"train.init_from {folder}: holds a {kind!r} model; give one of {', '.join(kinds)}")
    kinds[kind](values, config, folder)
    try:
        with _stored_tensors(folder) as stored:
            names = {_our_name(name) if kind == "bart" else name: name for name in stored}
            _report(folder, *copy_weights(model, stored, names))
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes safetensors say
        raise UserError(f"{folder}: cannot load the model: {str(error).splitlines()[0]}; export it again") from error


def copy_weights(model: nn.Module, stored: dict[str, Any], names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Copy stored tensors into the model's parameters; returns (parameters left as they were, tensors left unused).

    `names` maps our names to stored ones. Tables of embeddings and of positions may differ in length: the common rows
    are copied, and positions beyond them repeat the table from its start, as LED's do. Collective under ZeRO 3.
    """
    from transpooler.trainer.engine.engine import gather_weights

    by_tensor = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = {name: by_tensor[id(item)] for name, item in model.named_parameters(remove_duplicate=False)}
    missing, used = [], {stored_name for ours, stored_name in names.items() if tied.get(ours, ours) != ours}
    for name, parameter in model.named_parameters():
        if name not in names:
            missing.append(name)
            continue
        used.add(names[name])
        tensor = stored[names[name]]()
        with gather_weights([parameter]), torch.no_grad():
            if (problem := _fit(name, parameter, tensor)) is not None:
                missing.append(problem)
    return missing, sorted(set(stored) - used)


def _fit(name: str, parameter: Tensor, tensor: Tensor) -> str | None:
    """Copy; what could not be filled, or None. UserError where shapes differ in more than the rows of a table."""
    table = "shared" in name or "embedder.positions" in name
    if tensor.shape[1:] != parameter.shape[1:] or (tensor.shape != parameter.shape and not table):
        raise UserError(f"train.init_from: {name} is {tuple(parameter.shape)} here and {tuple(tensor.shape)} there")
    rows = min(len(tensor), len(parameter))
    parameter[:rows] = tensor[:rows].to(parameter.dtype)
    if len(parameter) == rows:
        return None
    if "embedder.positions" not in name:
        return f"{name}[{rows}:]"
    for start in range(rows, len(parameter), rows):
        parameter[start : start + rows] = parameter[: min(rows, len(parameter) - start)]
    return None


@contextmanager
def _stored_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """Name -> a function that reads the tensor, over all safetensors files of a folder."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: has no .safetensors file; save the model with `save_pretrained` again")
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for path in files:
            file: Any = stack.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                bart_positions = name.endswith("embed_positions.weight")
                found[name] = _reader(file, name, BART_POSITION_OFFSET if bart_positions else 0)
        yield found


def _reader(file: Any, name: str, skip: int) -> Any:
    return lambda: file.get_tensor(name)[skip:]


def _report(folder: Path, missing: list[str], unused: list[str]) -> None:
    for names, what in ((missing, "start from random weights"), (unused, "are left out")):
        if names:
            say(f"train.init_from {folder}: {', '.join(names)} {what}: no counterpart")
    if not missing and not unused:
        say(f"train.init_from {folder}: every tensor found its place")


def _check_export(values: dict[str, Any], config: Config, folder: Path) -> None:
    from transpooler.model import TranspoolerConfig

    architecture = TranspoolerConfig(**values).architecture
    for entry in dataclasses.fields(config.model):
        old, new = getattr(architecture, entry.name), getattr(config.model, entry.name)
        if old != new and entry.name not in FREE_WHEN_STARTING:
            raise UserError(f"model.{entry.name} is {new!r}, but train.init_from {folder} was trained with {old!r}")


def _check_bart(values: dict[str, Any], config: Config, folder: Path) -> None:
    """Dimensions must be BART's; positions, block size and pooling are free (other positions leave BART's out)."""
    expected = {
        "d_model": values["d_model"],
        "encoder_layers": values["encoder_layers"],
        "decoder_layers": values["decoder_layers"],
        "num_heads": values["encoder_attention_heads"],
        "ffn_dim": values["encoder_ffn_dim"],
        "activation": values.get("activation_function", "gelu"),
        "norm": "post",
        "embedding_norm": True,
    }
    wrong = [f"model.{key}={value}" for key, value in expected.items() if getattr(config.model, key) != value]
    if wrong:
        raise UserError(f"train.init_from {folder} is a BART, whose weights fit a model with {' '.join(wrong)}")
    unequal = values["decoder_attention_heads"] != values["encoder_attention_heads"]
    if values.get("scale_embedding") or unequal or values["decoder_ffn_dim"] != values["encoder_ffn_dim"]:
        raise UserError(
            f"train.init_from {folder}: scaled embeddings, or stacks of unlike width, have no counterpart here"
        )


def _our_name(name: str) -> str:
    """Our name of a tensor of BART (with or without the `model.` of its heads); other names stay as they are."""
    parts = name.removeprefix("model.").split(".")
    if parts[0] == "lm_head" or parts[0] == "shared":
        return name if parts[0] == "lm_head" else "model.shared.weight"
    if len(parts) < 3 or parts[0] not in ("encoder", "decoder"):
        return name
    stack, rest = parts[0], parts[1:]
    if rest[0] == "embed_positions":
        return f"model.{stack}.embedder.positions.weight"
    if rest[0] == "layernorm_embedding":
        return f"model.{stack}.embedder.norm.{rest[1]}"
    if rest[0] != "layers":
        return f"model.{'.'.join(parts)}"
    ours = BART_LAYER.get(rest[2], rest[2])
    if stack == "encoder":
        ours = {"self_attention": "attention", "self_residual.norm": "attention_residual.norm"}.get(ours, ours)
    return ".".join(["model", stack, "layers", rest[1], ours, *rest[3:]])

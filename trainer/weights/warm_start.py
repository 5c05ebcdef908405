"""The first weights of a run from a model on disk: an export of ours, or one of a family of `transformers`.

Tensors are read one at a time, under ZeRO 3 into the gathered parameter, so no rank ever holds the whole model.
Every tensor without a counterpart is reported.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from transpooler.common import UserError, list_some, say
from transpooler.data_pipeline.tokenizer import fingerprint, load_tokenizer
from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.trainer.config import Config
from transpooler.trainer.config.differences import starting_conflicts
from transpooler.trainer.config.families.family import user_error
from transpooler.trainer.config.families.hub import find_weights
from transpooler.trainer.config.families.read import read_pretrained
from transpooler.trainer.config.families.stored import StoredTensors, open_tensors
from transpooler.trainer.engine.engine import gather_weights
from transpooler.trainer.weights.compressor import stock_names
from transpooler.trainer.weights.models import read_model_config

TABLES = ("shared", "embedder.positions", "embed_tokens", "lm_head")
"""Parts of the names of tables, which may differ in their number of rows."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN = 12
"""How many names a line lists."""
_MAY_BE_NEW = re.compile(r"\.poolers\.|\.embedder\.positions\.|\.relative_bias\.|\[")
"""Parts of the names of weights that a run may have and its beginning may lack."""


def start_from(model: PreTrainedModel, source: str | Path, config: Config, tokenizer: PreTrainedTokenizerFast) -> None:
    """Copy what fits from the model in a folder or of the hub; UserError if tokenizer or architecture differ."""
    if isinstance(config.model, CompressorArchitecture):
        _start_compressor(model, config)
        return
    folder = find_weights(source)
    read_model_config(folder)  # says what is wrong with a folder that is no model
    found = read_pretrained(folder)
    own = config.prepare.tokenizer.path or folder
    if fingerprint(load_tokenizer(own)) != fingerprint(tokenizer):
        raise UserError(
            f"train.init_from {folder}: its tokenizer is not that of {config.data.shards}; prepare the documents "
            f"with prepare.tokenizer.path={own}"
        )
    known = {entry.name for entry in fields(Architecture)}
    weights = Architecture(**{name: value for name, value in found.fields.items() if name in known})
    conflicts = starting_conflicts(weights, config.seq2seq)
    if weights.vocab_rows is not None and (rows := model.config.vocab_size) < weights.vocab_rows:
        conflicts.append(f"model.vocab_rows is {rows}, in the weights {weights.vocab_rows}")
    if conflicts:
        raise UserError(f"train.init_from {folder}: {'; '.join(conflicts)}; leave out what the weights decide")
    try:
        with open_tensors(folder) as stored:
            names = {found.family.our_name(name): name for name in stored}
            missing, unused = copy_weights(model, stored, names, found.family.rows_to_skip)
    except ValueError as error:
        raise user_error(folder, found.kind, error) from error
    if lacking := [name for name in missing if not _MAY_BE_NEW.search(name)]:
        raise UserError(f"train.init_from {folder}: lacks {list_some(lacking)}; download or save it again")
    _report(folder, missing, [name for name in unused if not name.endswith(found.family.derived)])
    if found.limit is not None:
        say(f"train.init_from {folder}: {found.limit}")


def _start_compressor(model: nn.Module, config: Config) -> None:
    """Copy the reader's and the encoder's weights from folders of stock models, or from an export of ours."""
    assert isinstance(config.model, CompressorArchitecture)
    assert config.train.init_from is not None
    whole = config.train.init_from
    sources = {"reader": whole, "encoder": config.train.init_encoder_from or whole}
    for part, source in sources.items():
        folder = find_weights(source)
        exported = (folder / part / "config.json").is_file()
        with open_tensors(folder / part if exported else folder) as stored:
            if exported:
                names = {f"{part}.{name}": name for name in stored}
            else:
                names = dict(stock_names(stored, config.model.num_layers, part))
            missing, _ = copy_weights(model, stored, names)
        own = "reader." if part == "reader" else "encoder.stock."
        if lacking := [name for name in missing if name.startswith(own)]:
            raise UserError(f"{folder}: lacks weights of the {part}: {list_some(lacking)}; download or save it again")
    say(f"train.init_from {whole}: every tensor of the reader and of {config.model.num_layers} encoder layers is there")


def copy_weights(
    model: nn.Module,
    stored: StoredTensors,
    names: Mapping[str, str],
    rows_to_skip: Callable[[str], int] = lambda _: 0,
) -> tuple[list[str], list[str]]:
    """Copy stored tensors into the model's parameters; returns (parameters left as they were, tensors left unused).

    `names` maps our names to stored ones; `rows_to_skip` counts a stored tensor's first rows without a counterpart.
    Tables of embeddings and of positions may differ in length: the common rows are copied, and positions beyond them
    repeat the table from its start, as LED's do. Collective under ZeRO 3.
    """
    by_tensor = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = {name: by_tensor[id(item)] for name, item in model.named_parameters(remove_duplicate=False)}
    other = {ours: stored_name for ours, stored_name in names.items() if tied.get(ours, ours) != ours}
    missing, used = [], set(other.values())
    names = {tied[ours]: stored_name for ours, stored_name in other.items()} | dict(names)  # under any tied name
    for name, parameter in model.named_parameters():
        if name not in names:
            missing.append(name)
            continue
        used.add(names[name])
        tensor = stored.read(names[name], rows_to_skip(names[name]))
        with gather_weights([parameter]), torch.no_grad():
            if (problem := _copy_tensor(name, parameter, tensor)) is not None:
                missing.append(problem)
    return missing, sorted(set(stored) - used)


def _copy_tensor(name: str, parameter: Tensor, tensor: Tensor) -> str | None:
    """Copy, and return what was left unfilled, or None. UserError if shapes differ in more than the rows of a table."""
    table = any(part in name for part in TABLES)
    tensor = tensor.reshape(-1, *parameter.shape[1:]) if parameter.dim() == 1 else tensor  # final_logits_bias is a row
    if tensor.shape[1:] != parameter.shape[1:] or (tensor.shape != parameter.shape and not table):
        shapes = f"{tuple(parameter.shape)} here and {tuple(tensor.shape)} there"
        raise UserError(f"train.init_from: {name} is {shapes}; give the config.json that belongs to the weights")
    if tensor.dtype not in FLOATS:
        raise UserError(f"train.init_from: {name} is {tensor.dtype}: its weights are quantised; give the full ones")
    rows = min(len(tensor), len(parameter))
    parameter[:rows] = tensor[:rows].to(parameter.dtype)
    if len(parameter) == rows:
        return None
    if "embedder.positions" not in name:
        return f"{name}[{rows}:]"
    for start in range(rows, len(parameter), rows):
        parameter[start : start + rows] = parameter[: min(rows, len(parameter) - start)]
    return None


def _report(folder: Path, missing: list[str], unused: list[str]) -> None:
    for names, what in ((missing, "start from random weights"), (unused, "are left out")):
        if names:
            say(f"train.init_from {folder}: {list_some(names, SHOWN)} {what}: no counterpart")
    if not missing and not unused:
        say(f"train.init_from {folder}: every tensor found its place")

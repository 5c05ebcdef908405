"""The first weights of a run from a model on disk: an export of ours, whatever its pooling, or one of another family.

Tensors are read from safetensors one at a time, under ZeRO 3 by rank 0 alone, so no rank ever holds the whole model.
Every tensor without a counterpart is reported.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from transpooler.common import UserError, read_json, say
from transpooler.data_pipeline.tokenizer import fingerprint, load_tokenizer
from transpooler.model import TranspoolerConfig
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.trainer.config import Config
from transpooler.trainer.config.differences import FREE_WHEN_STARTING
from transpooler.trainer.engine.engine import gather_weights
from transpooler.trainer.weights import bart
from transpooler.trainer.weights.compressor import stock_names
from transpooler.trainer.weights.models import read_model_config


class Family(NamedTuple):
    """A kind of stored model that a run can start from."""

    check: Callable[[dict[str, Any], Config, Path], None]
    """UserError unless the weights of a model with this config.json fit the run; the folder is for the message."""
    our_name: Callable[[str], str] = lambda name: name
    """Our name of a stored tensor."""
    rows_to_skip: Callable[[str], int] = lambda _: 0
    """Rows at the beginning of a stored tensor that have no counterpart."""


def _check_export(values: dict[str, Any], config: Config, folder: Path) -> None:
    architecture = TranspoolerConfig(**values).architecture
    for entry in dataclasses.fields(config.model):
        old, new = getattr(architecture, entry.name), getattr(config.model, entry.name)
        if old != new and entry.name not in FREE_WHEN_STARTING:
            raise UserError(f"model.{entry.name} is {new!r}, but train.init_from {folder} was trained with {old!r}")


FAMILIES = {"transpooler": Family(_check_export), "bart": Family(bart.check_bart, bart.our_name, bart.rows_to_skip)}
"""By the `model_type` of config.json."""
TABLES = ("shared", "embedder.positions", "embed_tokens", "lm_head")
"""Parts of the names of tables, which may differ in their number of rows."""
BEGINNINGS = ("decoder_start_token_id", "forced_bos_token_id")
"""Tokens with which `generate` begins; a run begins with the tokenizer's bos token and forces nothing after it."""


def start_from(model: PreTrainedModel, folder: Path, config: Config, tokenizer: PreTrainedTokenizerFast) -> None:
    """Copy what fits from the model in `folder`; UserError if its tokenizer or architecture is not this run's."""
    if isinstance(config.model, CompressorArchitecture):
        _start_compressor(model, config)
        return
    values = read_model_config(folder)
    kind = values.get("model_type")
    if fingerprint(load_tokenizer(folder)) != fingerprint(tokenizer):
        raise UserError(
            f"train.init_from {folder}: its tokenizer is not that of {config.data.shards}; prepare the documents "
            f"with prepare.tokenizer.path={folder}"
        )
    if kind not in FAMILIES:
        raise UserError(f"train.init_from {folder}: holds a {kind!r} model; give one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    family.check(values, config, folder)
    with _naming(folder), ExitStack() as stack:
        stored = _open_tensors(folder, family, stack)
        names = {family.our_name(name): name for name in stored}
        _report(folder, *copy_weights(model, stored, names))
    _report_beginnings(model, folder, values)


def _start_compressor(model: nn.Module, config: Config) -> None:
    """Copy the reader's and the encoder's weights from folders of stock models, or from an export of ours."""
    assert isinstance(config.model, CompressorArchitecture)
    assert config.train.init_from is not None
    whole = Path(config.train.init_from)
    sources = {"reader": whole, "encoder": Path(config.train.init_encoder_from or whole)}
    for part, folder in sources.items():
        exported = (folder / part / "config.json").is_file()
        with _naming(folder), ExitStack() as stack:
            stored = _open_tensors(folder / part if exported else folder, None, stack)
            if exported:
                names = {f"{part}.{name}": name for name in stored}
            else:
                names = dict(stock_names(stored, config.model.num_layers, part))
            missing, _ = copy_weights(model, stored, names)
        lacking = [name for name in missing if name.startswith(("reader.", "encoder.stock.")) and name.startswith(part)]
        if lacking:
            shown = f"{', '.join(lacking[:3])}{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}"
            raise UserError(f"{folder}: lacks weights of the {part}: {shown}; download or save it again")
    say(f"train.init_from {whole}: every tensor of the reader and of {config.model.num_layers} encoder layers is there")


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Name the folder in whatever a broken file makes safetensors say."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder}: cannot load the model: {str(error).splitlines()[0]}; export it again") from error


def copy_weights(model: nn.Module, stored: dict[str, Any], names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Copy stored tensors into the model's parameters; returns (parameters left as they were, tensors left unused).

    `names` maps our names to stored ones. Tables of embeddings and of positions may differ in length: the common rows
    are copied, and positions beyond them repeat the table from its start, as LED's do. Collective under ZeRO 3.
    """
    by_tensor = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = {name: by_tensor[id(item)] for name, item in model.named_parameters(remove_duplicate=False)}
    other = {ours: stored_name for ours, stored_name in names.items() if tied.get(ours, ours) != ours}
    missing, used = [], set(other.values())
    names = {tied[ours]: stored_name for ours, stored_name in other.items()} | names  # stored under any tied name
    for name, parameter in model.named_parameters():
        if name not in names:
            missing.append(name)
            continue
        used.add(names[name])
        tensor = stored[names[name]]()
        with gather_weights([parameter]), torch.no_grad():
            if (problem := _copy_tensor(name, parameter, tensor)) is not None:
                missing.append(problem)
    return missing, sorted(set(stored) - used)


def _copy_tensor(name: str, parameter: Tensor, tensor: Tensor) -> str | None:
    """Copy, and return what was left unfilled, or None. UserError if shapes differ in more than the rows of a table."""
    table = any(part in name for part in TABLES)
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


def _open_tensors(folder: Path, family: Family | None, stack: ExitStack) -> dict[str, Any]:
    """Name -> a function that reads the tensor, over all safetensors files of a folder, which stay open in `stack`."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: has no .safetensors file; save the model with `save_pretrained` again")
    found: dict[str, Any] = {}
    for path in files:
        file: Any = stack.enter_context(safe_open(path, framework="pt"))
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            found[name] = _reader(file, name, family.rows_to_skip(name) if family else 0)
    return found


def _reader(file: Any, name: str, skip: int) -> Any:
    return lambda: file.get_tensor(name)[skip:]


def _report(folder: Path, missing: list[str], unused: list[str]) -> None:
    for names, what in ((missing, "start from random weights"), (unused, "are left out")):
        if names:
            say(f"train.init_from {folder}: {', '.join(names)} {what}: no counterpart")
    if not missing and not unused:
        say(f"train.init_from {folder}: every tensor found its place")


def _report_beginnings(model: PreTrainedModel, folder: Path, values: dict[str, Any]) -> None:
    """Name the tokens with which the stored model began its texts, where they are not ours."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    theirs = {name: generation.get(name, values.get(name)) for name in BEGINNINGS}
    ours = {name: getattr(model.generation_config, name, None) for name in BEGINNINGS}
    if lost := [f"{name} {value}" for name, value in theirs.items() if value not in (None, ours[name])]:
        start = ours["decoder_start_token_id"]
        say(f"train.init_from {folder}: its {', '.join(lost)} are left out: here texts begin after token {start}")

"""Checkpoints to folders that `transformers` loads: config, safetensors, tokenizer, code, model card."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import transformers

from transpooler.common import UserError, list_some, read_json, say
from transpooler.data_pipeline.order.corpus import tokenizer_folder
from transpooler.data_pipeline.text_tokens import leading_special_ids
from transpooler.data_pipeline.tokenizer import framing, load_tokenizer
from transpooler.model import TranspoolerForConditionalGeneration
from transpooler.trainer.checkpoint import checkpoint
from transpooler.trainer.checkpoint.consolidate import consolidate_weights
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.config.families.hub import find_weights
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.weights.compressor import save_compressor
from transpooler.trainer.weights.export_code import write_code
from transpooler.trainer.weights.generation import set_generation
from transpooler.trainer.weights.lora import add_lora, merge_lora
from transpooler.trainer.weights.model_card import model_card
from transpooler.trainer.weights.models import build_model, read_model_config
from transpooler.trainer.weights.warm_start import start_from
from transpooler.trainer.weights.whole_folder import LIST, check_free, known_files, whole_folder

if TYPE_CHECKING:
    from transpooler.model import PoolingModel

OF_THIS_MACHINE = ("is_local", "local_files_only")
"""What transformers writes into tokenizer_config.json of how the tokenizer was loaded."""


def export_run(run: Path, output: Path, step: int | None = None) -> None:
    """Write the model of a run's checkpoint (None: the newest valid one) into `output`, in float32."""
    check_free(output)
    model, tokenizer, config, chosen = load_run(run, step)
    export_model(model, tokenizer, output, config, step=chosen)


def load_run(
    run: Path, step: int | None = None
) -> "tuple[PoolingModel, transformers.PreTrainedTokenizerFast, Config, int]":
    """Model (float32), tokenizer, configuration and step of a run's checkpoint (None: the newest valid one)."""
    config = load_config([RunFolder(run).config])
    chosen = _choose_step(run, step)
    tokenizer = load_tokenizer(tokenizer_folder(config.data))
    model = build_model(config, tokenizer)
    if config.train.lora is not None:
        add_lora(model, config.train.lora, config.seed)
    model.load_state_dict(consolidate_weights(run, chosen))
    if config.train.lora is not None:
        merge_lora(model)
    return model, tokenizer, config, chosen


def export_start(config: Config, output: Path) -> None:
    """Write the model with which a run that starts from weights begins (`train.init_from`), in float32."""
    assert config.train.init_from is not None
    check_free(output)
    folder = find_weights(config.train.init_from)
    read_model_config(folder)  # says what is wrong with a folder that is no model
    if os.path.realpath(output) == os.path.realpath(folder):
        raise UserError(f"{output}: holds the weights themselves; choose another folder for what is made of them")
    tokenizer = load_tokenizer(config.prepare.tokenizer.path or folder)
    model = build_model(config, tokenizer)
    start_from(model, config.train.init_from, config, tokenizer)
    export_model(model, tokenizer, output, config, step=0)


def export_model(
    model: "PoolingModel",
    tokenizer: transformers.PreTrainedTokenizerFast,
    folder: Path,
    config: Config,
    *,
    step: int,
) -> None:
    """Write model, tokenizer, code and model card; the folder appears complete or not at all.

    An earlier export is replaced if nobody has changed it; UserError for any other folder that is not empty.
    """
    transformers.utils.logging.disable_progress_bar()
    tokenizer.model_max_length = config.data.max_source_tokens
    set_generation(model.generation_config, config.generation)
    with whole_folder(folder) as incomplete:
        folders = [incomplete]
        if isinstance(model, TranspoolerForConditionalGeneration):
            model.save_pretrained(incomplete)
            write_code(incomplete)
        else:
            folders += save_compressor(model, incomplete)
        for each in folders:
            save_tokenizer(tokenizer, each, config.data.source_prefix_ids)
        (incomplete / "README.md").write_text(
            model_card(model, config, step, str(tokenizer.eos_token)), encoding="utf-8"
        )


def renew_export(source: Path, folder: Path) -> None:
    """Write a model folder anew with today's code and rules of the tokenizer; the weights are copied as they are.

    For exports of older versions, and for what a program that imports the package has saved, which carries no code.
    """
    if (kind := read_model_config(source).get("model_type")) != "transpooler":
        raise UserError(f"{source}: holds a {kind!r} model, which needs no code of ours; copy the folder")
    check_free(folder)
    tokenizer, names = load_tokenizer(source), [name for name in known_files(source) if "/" not in name]
    if others := sorted({path.name for path in source.iterdir()} - {*names, "__pycache__"}):
        say(f"{source}: copies the model alone, not {list_some(others)}")
    with whole_folder(folder) as incomplete:
        for name in names:
            if name != LIST and not name.endswith(".py"):
                shutil.copyfile(source / name, incomplete / name)
        write_code(incomplete)
        save_tokenizer(tokenizer, incomplete, leading_special_ids(tokenizer))


def save_tokenizer(tokenizer: transformers.PreTrainedTokenizerFast, folder: Path, prefix_ids: Sequence[int]) -> None:
    """Write the tokenizer as its users need it: it begins and ends texts, and knows nothing of this machine."""
    framing(tokenizer, prefix_ids).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {name: value for name, value in read_json(path).items() if name not in OF_THIS_MACHINE}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _choose_step(run: Path, step: int | None) -> int:
    steps = RunFolder(run).checkpoint_steps()
    if step is None:
        newest = checkpoint.newest_valid(run)
        if newest is None:
            raise UserError(f"{run}: has no checkpoint yet; train first")
        return newest
    if step not in steps:
        raise UserError(f"{run}: has no checkpoint of step {step}; it has {', '.join(map(str, steps)) or 'none'}")
    folder = RunFolder(run).checkpoint(step)
    for problem in checkpoint.problems(folder):
        raise UserError(f"{folder}: {problem}; choose another step of {steps}")
    return step

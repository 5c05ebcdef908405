"""Models from weights on disk or from a seed, in float32."""

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpooler.common import UserError, list_some, read_json, say
from transpooler.data_pipeline.objectives import OBJECTIVES
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.trainer.config import Config
from transpooler.trainer.run_folder import why_no_model
from transpooler.trainer.weights.compressor import compressor_config, load_compressor
from transpooler.trainer.weights.token_ids import check_token_ids, needed_rows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from transpooler.model import PoolingModel, TranspoolerConfig


def build_model(
    config: Config, tokenizer: "PreTrainedTokenizerFast", sharded: AbstractContextManager | None = None
) -> "PoolingModel":
    """A model of `config.model` over the tokenizer's vocabulary, weights seeded by `config.seed`.

    Each module's weights depend only on the seed and its name, so they are the same for any number of ranks, whether or
    not the model is built in the context `sharded` (trainer.engine.sharded_init), where no rank ever holds it whole.
    The global random state is left as it was.
    """
    import torch
    from transformers.initialization import no_init_weights

    from transpooler.trainer.engine.engine import gather_weights

    with torch.random.fork_rng():
        with no_init_weights(), sharded or nullcontext():
            model = make_model(config, tokenizer)
        model.tie_weights()
        done: set[int] = set()
        for name, module, owner in with_owners(model):
            parameters = [item for item in module.parameters(recurse=False) if id(item) not in done]
            if parameters:
                done.update(map(id, parameters))
                torch.manual_seed(zlib.crc32(f"{config.seed}/{name}".encode()))
                with gather_weights(parameters):
                    owner._init_weights(module)
        return model.train()


def make_model(config: Config, tokenizer: "PreTrainedTokenizerFast") -> "PoolingModel":
    """The model of a run, its weights as `transformers` happens to make them."""
    if isinstance(config.model, CompressorArchitecture):
        from transpooler.model.compressor.modeling import CompressorForConditionalGeneration

        compressor = compressor_config(config, tokenizer)
        check_token_ids(compressor, config.generation, config.data)
        return CompressorForConditionalGeneration(compressor)
    from transpooler.model import TranspoolerForConditionalGeneration

    settings = model_config(config, tokenizer)
    check_token_ids(settings, config.generation, config.data)
    return TranspoolerForConditionalGeneration(settings)


def with_owners(model: "PreTrainedModel") -> Iterator[tuple[str, "nn.Module", "PreTrainedModel"]]:
    """(name, module, owner) of all modules; the owner is the innermost model of `transformers` that holds it."""
    from transformers import PreTrainedModel

    owners: dict[str, PreTrainedModel] = {"": model}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owners[name] = module
        yield name, module, next(owners[part] for part in _prefixes(name) if part in owners)


def _prefixes(name: str) -> Iterator[str]:
    """A dotted name, then its prefixes, the longest first; the empty one last."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def model_config(config: Config, tokenizer: "PreTrainedTokenizerFast") -> "TranspoolerConfig":
    """The model of a run as `transformers` configures it: its architecture, and ids of the tokenizer."""
    from transpooler.model import TranspoolerConfig

    rows = vocabulary_rows(config, tokenizer, config.seq2seq.vocab_rows)
    if (start := config.seq2seq.decoder_start_token_id or 0) >= rows:
        raise UserError(f"model.decoder_start_token_id is {start}; the vocabulary has {rows:,} tokens")
    return TranspoolerConfig.from_architecture(
        config.seq2seq,
        vocab_size=rows,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def vocabulary_rows(config: Config, tokenizer: "PreTrainedTokenizerFast", stored: int | None) -> int:
    """Rows of the table of embeddings: those of the weights, and more only where the run uses tokens beyond them.

    A tokenizer may have been given tokens that only other objectives need (<mask>, <gap>).
    """
    if stored is None:
        return len(tokenizer)
    needs_all = not OBJECTIVES[config.data.objective].needs_summaries
    return max(stored, len(tokenizer) if needs_all else needed_rows(tokenizer))


MODEL_TYPES = ("transpooler", "transpooler_compressor")
"""`model_type` of what is exported."""


def require_model(folder: Path) -> None:
    """UserError unless `folder` looks like an exported model of ours; reads config.json alone."""
    if (kind := read_model_config(folder).get("model_type")) not in MODEL_TYPES:
        raise UserError(f"{folder}: holds a {kind!r} model, not one of transpooler; give a folder that it exported")


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; UserError if there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: {why_no_model(folder)}")
    values = read_json(folder / "config.json")
    return values if isinstance(values, dict) else {}


def load_model(folder: Path, keep: float | None = None) -> tuple["PoolingModel", "PreTrainedTokenizerFast"]:
    """Load model and tokenizer of an exported folder, in evaluation mode, onto the GPU where there is one.

    It keeps `keep` tokens, or this share, of each document (None: its largest budget). Raises UserError unless all
    weights are there and fit, and the model can keep that.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    from transpooler.data_pipeline.tokenizer import load_tokenizer
    from transpooler.model import TranspoolerForConditionalGeneration

    require_model(folder)
    # The weights load at once, and a progress bar of theirs would be in the way of ours.
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # weights that do not fit are reported below, in one line
    try:
        if read_model_config(folder)["model_type"] == MODEL_TYPES[1]:
            loaded: Any = load_compressor(folder)
        else:
            loaded = TranspoolerForConditionalGeneration.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot load the model: {str(error).splitlines()[0]}; export it again") from error
    finally:
        logging.set_verbosity(verbosity)
    model, found = loaded
    known = {*dir(type(model.config)), "auto_map"}
    if unknown := sorted(name for name in read_model_config(folder) if name not in known and name[0] != "_"):
        what = f"has settings that this version does not know ({', '.join(unknown)})"
        say(f"WARNING: {folder / 'config.json'}: {what}; if they matter, use the version of transpooler that wrote it")
    if problems := list(_loading_problems(found)):
        raise UserError(f"{folder}: does not hold the model of its config.json: {'; '.join(problems)}; export it again")
    tokenizer = load_tokenizer(folder)
    is_seq2seq = isinstance(model, TranspoolerForConditionalGeneration)
    rows = model.config.vocab_size if is_seq2seq else min(model.config.encoder.vocab_size, model.config.vocab_size)
    if (num_tokens := needed_rows(tokenizer, padding=is_seq2seq)) > rows:
        counts = f"its tokenizer has {num_tokens:,} tokens, its model {rows:,}"
        raise UserError(f"{folder}: {counts}; export it again")
    keep_tokens(model, keep)
    return model.eval().to(default_device()), tokenizer


def keep_tokens(model: "PoolingModel", keep: float | None, option: str = "--keep") -> None:
    """`model.keep`, for what the `option` says: UserError where the model cannot keep that."""
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, Real)):
        raise UserError(f"{option} is {keep!r}; must be a number of tokens, a share such as 0.125, or None")
    try:
        model.keep(keep)
    except ValueError as error:
        raise UserError(f"{option.removesuffix('keep')}{error}") from None


def prepare_model(model: "PoolingModel", precision: str) -> "PoolingModel":
    """`prepare_for_inference`; UserError where this machine cannot compute with that precision."""
    from transpooler.model.ops.decoding.prepare import prepare_for_inference

    try:
        return prepare_for_inference(model, precision)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"generation.precision (--precision): {error}") from error


def default_device() -> str:
    """The GPU where there is one (the rank's own, once ranks are joined), else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _loading_problems(found: dict[str, Any]) -> Iterator[str]:
    """Weights that `from_pretrained` made at random or left out; weights that are tied to others are neither."""
    for kind in ("missing", "unexpected", "mismatched"):
        # A mismatched weight comes with its two shapes.
        names = sorted(item if isinstance(item, str) else item[0] for item in found[f"{kind}_keys"])
        if names:
            yield f"{kind} weights: {list_some(names)}"

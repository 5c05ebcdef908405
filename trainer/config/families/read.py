"""Reads a folder of pretrained weights: which family, which architecture, how its texts begin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transpooler.common import UserError, read_json, say
from transpooler.trainer.config.evaluation import FORCED
from transpooler.trainer.config.families import FAMILIES
from transpooler.trainer.config.families.family import Family, Fields, user_error
from transpooler.trainer.config.families.stored import open_tensors
from transpooler.trainer.run_folder import why_no_model

COMPRESSOR = "transpooler_compressor"
"""`model_type` of our exports of that kind."""


class Pretrained(NamedTuple):
    """What a folder holds."""

    kind: str
    """`model_type` of its config.json."""
    family: Family
    fields: Fields
    """Of `Architecture`."""
    generation: dict[str, Any]
    """Of the `generation:` section."""
    limit: str | None
    """Where the stored model computes something else, in words."""


def read_pretrained(folder: Path) -> Pretrained:
    """Read config.json, generation_config.json and what the tensors alone tell. UserError where that cannot be done."""
    values = read_config(folder)
    kind = str(values.get("model_type"))
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"train.init_from {folder}: holds a {kind!r} model; give one of {known}{_hint(kind)}")
    if values.get("quantization_config") is not None:
        raise UserError(f"train.init_from {folder}: its weights are quantised; give the full ones")
    own = _read(folder / "generation_config.json") or _read(folder / "config.json")
    generation = values | {name: value for name, value in own.items() if value is not None}
    family = FAMILIES[kind]
    try:
        with open_tensors(folder) as stored:
            fields = family.fields(generation, stored)
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'}: lacks {error.args[0]}; download or save it again") from error
    except ValueError as error:
        raise user_error(folder, kind, error) from error
    limit = family.limit(values) if family.limit else None
    return Pretrained(kind, family, fields, _generation(own), limit)


def _generation(own: Mapping[str, Any]) -> dict[str, Any]:
    """What generation does with the weights whatever the settings: as `transformers`, from what stands in the file."""
    found: dict[str, Any] = {name: own[name] for name in FORCED if isinstance(own.get(name), int)}
    if own.get("force_bos_token_to_be_generated") and isinstance(own.get("bos_token_id"), int):  # BART of 2020
        found.setdefault("forced_bos_token_id", own["bos_token_id"])
    words = [word for word in own.get("bad_words_ids") or () if isinstance(word, list)]
    if any(len(word) != 1 for word in words):
        say("bad_words_ids of the weights: words of several tokens are not taken over")
    never = {*(own.get("suppress_tokens") or ()), *(word[0] for word in words if len(word) == 1)}
    return found | ({"suppress_tokens": sorted(never)} if never else {})


def read_kind(folder: Path) -> str | None:
    """The `model.kind` that a folder's weights can become; None if they are no known model's."""
    kind = str(_read(folder / "config.json").get("model_type"))
    if kind in FAMILIES:
        return "seq2seq"
    return "compressor" if kind == COMPRESSOR or is_causal(kind) else None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json with the defaults of its class filled in. UserError if there is none, or it cannot be read."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    raw = _read(folder / "config.json")
    if not raw:
        raise UserError(f"train.init_from {folder}: {why_no_model(folder)}")
    if raw.get("model_type") == "transpooler":
        from transpooler.model import TranspoolerConfig

        make: Any = TranspoolerConfig.from_dict
    else:
        make = AutoConfig.from_pretrained
    try:
        return make(raw if raw.get("model_type") == "transpooler" else folder).to_dict()
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        if raw.get("model_type") not in FAMILIES:
            return raw
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / 'config.json'}: {reason}; download or save it again") from error


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path) if path.is_file() else {}
    return values if isinstance(values, dict) else {}


def _hint(kind: str) -> str:
    return "; for a causal language model set model.kind=compressor" if is_causal(kind) else ""


def is_causal(kind: str) -> bool:
    """Whether models of this `model_type` are causal language models, and no decoders of encoder-decoders."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

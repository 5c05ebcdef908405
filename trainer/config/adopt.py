"""What the weights that a run starts from say about its `model:` section, so that nobody has to write it out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transpooler.common import UserError
from transpooler.trainer.run_folder import RunFolder

_NOT_OF_THE_MODEL = ("architectures", "transformers_version", "_name_or_path", "dtype", "use_cache", "auto_map")

_DECODER_ONLY = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"}
"""Keys that every decoder-only model has in its config.json, and BART and its kin have under other names."""


def adopt_weights(values: dict[str, Any]) -> None:
    """Fill in the `model:` keys that follow from train.init_from; what is written there already stays.

    UserError where the weights cannot be read; a run that has begun needs them no more.
    """
    model, train = values.get("model"), values.get("train")
    if not isinstance(model, dict) or model.get("kind") != "compressor" or not isinstance(train, Mapping):
        return
    reader = train.get("init_from")
    encoder = train.get("init_encoder_from") or reader
    for key, source in (("reader", reader), ("encoder", encoder)):
        if source is None or key in model:
            continue
        try:
            model[key] = _read_causal_config(str(source), key)
        except UserError:
            saved = _saved_model(values)
            if key not in saved:
                raise
            model[key] = saved[key]


def _read_causal_config(source: str, part: str) -> dict[str, Any]:
    """config.json of a causal language model, defaults filled in; of a compressor, that of its part."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from transpooler.model.compressor.config import CompressorConfig

    try:
        AutoConfig.register(CompressorConfig.model_type, CompressorConfig, exist_ok=True)
        config: Any = AutoConfig.from_pretrained(Path(source).expanduser() if Path(source).exists() else source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.init_from {source}: no model there: {reason}") from error
    if isinstance(config, CompressorConfig):
        config = getattr(config, part)
    values = config.to_dict()
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not values.keys() >= _DECODER_ONLY:
        raise UserError(
            f"train.init_from {source}: holds a {config.model_type!r} model, which is no causal language model; give "
            "one such as Llama, SmolLM2, Qwen, Mistral, Gemma 3 text or OLMo 2"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"train.init_from {source}: its weights are quantised; give the full ones")
    return {name: value for name, value in values.items() if name not in _NOT_OF_THE_MODEL}


def _saved_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `model:` section that the run was begun with; empty if there is none."""
    from omegaconf import OmegaConf

    path = RunFolder(Path(str(values.get("run", "")))).config
    if not path.is_file():
        return {}
    saved: Any = OmegaConf.to_container(OmegaConf.load(path))
    return dict(saved.get("model") or {})

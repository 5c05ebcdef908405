"""BART (Lewis et al. 2020) and its kin with learned positions: mBART, PLBART, Blenderbot."""

from collections.abc import Callable

from transpooler.trainer.config.families.family import (
    Family,
    Fields,
    Values,
    activation,
    first_name,
    head_fields,
    require_equal,
)
from transpooler.trainer.config.families.stored import StoredTensors

LAYER = {
    "self_attn": "self_attention",
    "self_attn_layer_norm": "self_residual.norm",
    "encoder_attn": "cross_attention",
    "encoder_attn_layer_norm": "cross_residual.norm",
    "fc1": "ffn.fc_in",
    "fc2": "ffn.fc_out",
    "final_layer_norm": "ffn_residual.norm",
}
"""Parts of the layers, and ours."""
ENCODER_LAYER = LAYER | {"self_attn": "attention", "self_attn_layer_norm": "attention_residual.norm"}
STACK = {
    "embed_positions": "embedder.positions",
    "layernorm_embedding": "embedder.norm",
    "layer_norm": "final_norm.norm",
}
"""Other parts of a stack, and ours."""


NAMES_OF_EMBEDDINGS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")


def fields(values: Values, stored: StoredTensors) -> Fields:
    """What all kin of BART have in common."""
    require_equal(
        values, ("decoder_attention_heads", "encoder_attention_heads"), ("decoder_ffn_dim", "encoder_ffn_dim")
    )
    names = (f"{stack}{name}.weight" for name in NAMES_OF_EMBEDDINGS for stack in ("model.", "", "led."))
    return {
        "d_model": values["d_model"],
        "encoder_layers": values["encoder_layers"],
        "decoder_layers": values["decoder_layers"],
        "num_heads": values["encoder_attention_heads"],
        "ffn_dim": values["encoder_ffn_dim"],
        "activation": activation(values, "activation_function"),
        "embedding_scale": values["d_model"] ** 0.5 if values.get("scale_embedding") else 1.0,
        "dropout": values["dropout"],
        "init_std": values["init_std"],
        "decoder_start_token_id": values.get("decoder_start_token_id"),
        **head_fields(stored, first_name(stored, *names, "lm_head.weight")),
    }


def kin(**differences) -> Callable[[Values, StoredTensors], Fields]:
    """BART's fields, and these."""
    return lambda values, stored: fields(values, stored) | differences


def learned(**differences) -> Callable[[Values, StoredTensors], Fields]:
    """As `kin`, with a table of positions."""
    return lambda values, stored: {
        **fields(values, stored),
        "positions": "learned",
        "max_positions": values["max_position_embeddings"],
        **differences,
    }


def our_name(name: str) -> str:
    """Our name of a tensor, with or without the `model.` of its heads."""
    parts = name.removeprefix("model.").split(".")
    if parts[0] == "lm_head":
        return name
    if parts[0] == "final_logits_bias":
        return "lm_head.bias"
    if parts[0] == "shared":
        return "model.shared.weight"
    if len(parts) < 3 or parts[0] not in ("encoder", "decoder"):
        return name
    stack, part, *rest = parts
    if part == "layers":
        names = ENCODER_LAYER if stack == "encoder" else LAYER
        return ".".join(["model", stack, "layers", rest[0], names.get(rest[1], rest[1]), *rest[2:]])
    return ".".join(["model", stack, STACK.get(part, part), *rest])


BART = Family(learned(norm="post", embedding_norm=True), our_name, position_offset=2)
PLBART = BART
MBART = Family(learned(norm="pre", embedding_norm=True), our_name, position_offset=2)
BLENDERBOT = Family(learned(norm="pre"), our_name)
BLENDERBOT_SMALL = Family(learned(norm="post", embedding_norm=True, decoder_norm_first=True), our_name)

"""The weights of a BART of `transformers`: what a run must have to take them, and what they are called here."""

from pathlib import Path
from typing import Any

from transpooler.common import UserError
from transpooler.trainer.config import Config

LAYER = {
    "self_attn": "self_attention",
    "self_attn_layer_norm": "self_residual.norm",
    "encoder_attn": "cross_attention",
    "encoder_attn_layer_norm": "cross_residual.norm",
    "fc1": "ffn.fc_in",
    "fc2": "ffn.fc_out",
    "final_layer_norm": "ffn_residual.norm",
}
"""Parts of BART's layers, and ours. The encoder's self-attention is called `attention` here."""
POSITION_OFFSET = 2
"""BART's tables of positions begin with two rows that belong to no position."""


def check_bart(values: dict[str, Any], config: Config, folder: Path) -> None:
    """UserError unless dimensions are BART's. Positions, blocks and pooling are free; other positions drop BART's."""
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


def our_name(name: str) -> str:
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
    ours = LAYER.get(rest[2], rest[2])
    if stack == "encoder":
        ours = {"self_attention": "attention", "self_residual.norm": "attention_residual.norm"}.get(ours, ours)
    return ".".join(["model", stack, "layers", rest[1], ours, *rest[3:]])


def rows_to_skip(name: str) -> int:
    """How many rows at the beginning of a stored tensor have no counterpart."""
    return POSITION_OFFSET if name.endswith("embed_positions.weight") else 0

"""T5 (Raffel et al. 2020), T5 1.1, Flan-T5, ByT5, mT5, UMT5 and LongT5 with local attention (Guo et al. 2022)."""

from collections.abc import Callable

from transpooler.trainer.config.families.family import Family, Fields, Values, activation, first_name, head_fields
from transpooler.trainer.config.families.stored import StoredTensors

ATTENTIONS = ("SelfAttention", "LocalSelfAttention", "TransientGlobalSelfAttention")
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
FEED_FORWARD = {"wi": "fc_in", "wi_0": "gate", "wi_1": "fc_in", "wo": "fc_out"}
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
DERIVED = ("EncDecAttention.relative_attention_bias.weight",)
"""In old T5 checkpoints, and never used."""
GATES = {"gelu": "geglu", "silu": "swiglu"}
"""Second part of feed_forward_proj, and our activation; T5's gated gelu is the one by tanh."""


def _fields(values: Values, stored: StoredTensors) -> Fields:
    projection = str(values["feed_forward_proj"])
    gated, name = projection.startswith("gated-"), projection.removeprefix("gated-")
    if gated and name not in GATES:
        raise ValueError(f"feed_forward_proj {projection!r} has no counterpart here")
    start = values.get("decoder_start_token_id")
    return {
        "d_model": values["d_model"],
        "encoder_layers": values["num_layers"],
        "decoder_layers": values["num_decoder_layers"],
        "num_heads": values["num_heads"],
        "head_dim": values["d_kv"],
        "attention_scale": 1.0,
        "attention_bias": False,
        "ffn_dim": values["d_ff"],
        "ffn_bias": False,
        "activation": GATES[name] if gated else activation(values, "feed_forward_proj", name),
        "norm": "pre",
        "norm_kind": "rms",
        "norm_eps": values["layer_norm_epsilon"],
        "positions": "relative",
        "relative_buckets": values["relative_attention_num_buckets"],
        "relative_max_distance": values["relative_attention_max_distance"],
        "embedding_scale": 1.0,
        "dropout": values["dropout_rate"],
        "decoder_start_token_id": values["pad_token_id"] if start is None else start,
        **head_fields(stored, first_name(stored, *EMBEDDINGS)),
    }


def _scaled(**differences) -> Callable[[Values, StoredTensors], Fields]:
    """The head reads states times d_model^-1/2 where the configuration says so (T5 1.0), or where it says nothing."""
    return lambda values, stored: (
        _fields(values, stored)
        | ({"logits_scale": values["d_model"] ** -0.5} if values.get("scale_decoder_outputs", True) else {})
        | differences
    )


def our_name(name: str) -> str:
    """Our name of a tensor of a T5."""
    if name.startswith("lm_head."):
        return name
    stack, *parts = name.split(".")
    if stack == "shared":
        return "model.shared.weight"
    if parts[0] == "final_layer_norm":
        return f"model.{stack}.final_norm.norm.weight"
    if parts[0] != "block":
        return f"model.{name}"
    layer, sublayer, (part, *rest) = parts[1], int(parts[3]), parts[4:]
    decoder = stack == "decoder"
    if part in ATTENTIONS and rest[0] == "relative_attention_bias":
        return f"model.{stack}.relative_bias.tables.{layer}.weight"
    if part in ATTENTIONS and rest[0] in PROJECTIONS:
        ours = f"{'self_attention' if decoder else 'attention'}.{PROJECTIONS[rest[0]]}"
    elif part == "EncDecAttention" and rest[0] in PROJECTIONS:
        ours = f"cross_attention.{PROJECTIONS[rest[0]]}"
    elif part == "DenseReluDense":
        ours = f"ffn.{FEED_FORWARD[rest[0]]}"
    elif part == "layer_norm":
        residuals = ("self", "cross", "ffn") if decoder else ("attention", "ffn")
        ours = f"{residuals[sublayer]}_residual.norm"
    else:
        return name
    return f"model.{stack}.layers.{layer}.{ours}.weight"


def _limit_of_longt5(values: Values) -> str:
    if values["encoder_attention_type"] != "local":
        return "its global tokens are left out; train it"
    return f"equal up to {values['local_radius'] + 1} tokens, its weights serve beyond"


def _umt5(values: Values, stored: StoredTensors) -> Fields:
    """An untied head reads states as they are (`transformers` 5 scales them whatever the configuration says)."""
    found = _scaled(relative_per_layer=True)(values, stored)
    return found if found["tied_head"] else found | {"logits_scale": 1.0}


T5 = Family(_scaled(), our_name, derived=DERIVED)
MT5 = Family(_fields, our_name, derived=DERIVED)
UMT5 = Family(_umt5, our_name, derived=DERIVED)
LONGT5 = Family(_scaled(), our_name, derived=DERIVED, limit=_limit_of_longt5)

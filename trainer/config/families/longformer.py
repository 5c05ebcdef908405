"""LED (Beltagy et al. 2020): BART with windowed attention in the encoder."""

from transpooler.trainer.config.families import bart
from transpooler.trainer.config.families.family import Family, Fields, Values
from transpooler.trainer.config.families.stored import StoredTensors

ATTENTION = {
    "longformer_self_attn.query.": "q_proj.",
    "longformer_self_attn.key.": "k_proj.",
    "longformer_self_attn.value.": "v_proj.",
    "output.": "out_proj.",
}
"""Parts of the encoder's attention, and BART's. Those of global attention have no counterpart."""


def _fields(values: Values, stored: StoredTensors) -> Fields:
    positions = {"positions": "learned", "max_positions": values["max_encoder_position_embeddings"]}
    return bart.fields(values, stored) | {"norm": "post", "embedding_norm": True, **positions}


def _our_name(name: str) -> str:
    for theirs, ours in ATTENTION.items():
        name = name.replace(f".self_attn.{theirs}", f".self_attn.{ours}")
    return bart.our_name(name.removeprefix("led."))


def _limit(values: Values) -> str:
    windows = values["attention_window"]
    smallest = windows if isinstance(windows, int) else min(windows)
    return f"equal up to {smallest // 2 + 1} tokens without global attention, its weights serve beyond"


LED = Family(_fields, _our_name, limit=_limit)

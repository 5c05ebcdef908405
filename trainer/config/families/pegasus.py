"""BART's kin with sinusoids: PEGASUS (Zhang et al. 2020), Marian, M2M-100 and NLLB, PEGASUS-X (Phang et al. 2022)."""

from transpooler.trainer.config.families.bart import fields, kin, our_name
from transpooler.trainer.config.families.family import Family, Fields, Values
from transpooler.trainer.config.families.stored import StoredTensors


def _marian(values: Values, stored: StoredTensors) -> Fields:
    if not values.get("share_encoder_decoder_embeddings", True):
        raise ValueError("it has two vocabularies; here source and target share one")
    return fields(values, stored) | {"norm": "post"}


def _m2m_100(values: Values, stored: StoredTensors) -> Fields:
    offset = {"position_offset": values["pad_token_id"] + 1}  # fairseq counts from there
    return fields(values, stored) | {"norm": "pre", "sinusoid_steps": "half_less_one", **offset}


def _our_name(name: str) -> str:
    return name if name.endswith("embed_positions.weight") else our_name(name)


DERIVED = ("final_logits_bias", "embed_positions.weight", "embed_positions.weights", "encoder.version")
"""Sinusoids are stored, but computed here."""
PEGASUS = Family(kin(norm="pre"), _our_name, derived=DERIVED)
MARIAN = Family(_marian, _our_name, derived=DERIVED)
M2M_100 = Family(_m2m_100, _our_name, derived=DERIVED)
PEGASUS_X = Family(
    kin(norm="pre", sinusoid_steps="half_less_one", attention_bias=False),
    _our_name,
    derived=DERIVED,
    limit=lambda values: (
        f"its {values['num_global_tokens']} global tokens are left out, and its staggered blocks unless "
        "model.stagger_blocks is true; train it"
    ),
)

"""What a family of stored encoder-decoders is to us."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transpooler.common import UserError
from transpooler.trainer.config.families.stored import StoredTensors

Fields = dict[str, Any]
"""Fields of `Architecture`."""
Values = Mapping[str, Any]
"""config.json, defaults of `transformers` filled in."""

ACTIVATIONS = {
    **{name: name for name in ("relu", "gelu", "silu")},
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Names of `transformers`, and ours."""


class Family(NamedTuple):
    """A kind of stored model that a run can start from."""

    fields: Callable[[Values, StoredTensors], Fields]
    """The architecture; ValueError names what has no counterpart here."""
    our_name: Callable[[str], str] = lambda name: name
    """Our name of a stored tensor; a name without a counterpart stays as it is."""
    position_offset: int = 0
    """Rows at the start of a stored table of positions that belong to no position."""
    derived: tuple[str, ...] = ("final_logits_bias", "encoder.version", "decoder.version")
    """Ends of the names of tensors that may be left out without a word: computed ones, and zeros."""
    limit: Callable[[Values], str] | None = None
    """Where the model computes something else than ours without blocks and pooling, in words."""

    def rows_to_skip(self, name: str) -> int:
        """How many rows at the beginning of a stored tensor have no counterpart."""
        return self.position_offset if name.endswith("embed_positions.weight") else 0


def activation(values: Values, key: str, name: str | None = None) -> str:
    """Our name of an activation; ValueError for unknown ones."""
    name = values[key] if name is None else name
    if name not in ACTIVATIONS:
        raise ValueError(f"{key} {name!r} has no counterpart here")
    return ACTIVATIONS[name]


def require_equal(values: Values, *pairs: tuple[str, str]) -> None:
    """ValueError unless the two fields of each pair are equal: here both stacks have the same widths."""
    for first, second in pairs:
        if values[first] != values[second]:
            raise ValueError(f"{first} {values[first]} differs from {second} {values[second]}; here they are one")


def head_fields(stored: StoredTensors, embeddings: str) -> Fields:
    """What the tensors alone tell of a head: whether it is tied, whether it has a bias, rows of the vocabulary."""
    head = "lm_head.weight"
    return {
        "vocab_rows": stored.shape(embeddings)[0],
        "tied_head": head not in stored or stored.equal(head, embeddings),
        "logits_bias": "final_logits_bias" in stored and bool(stored.read("final_logits_bias").any()),
    }


def first_name(stored: StoredTensors, *names: str) -> str:
    """The first of the names that is stored; ValueError if there is none."""
    for name in names:
        if name in stored:
            return name
    raise ValueError(f"its weights lack {names[0]}")


def user_error(source: object, kind: str, error: ValueError) -> UserError:
    """What a user reads where a model of a known family does not fit."""
    return UserError(f"train.init_from {source}: holds a {kind!r} model that cannot be taken over: {error}")

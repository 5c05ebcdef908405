"""Rules that a tokenizer carries in its tokenizer.json, so that whoever loads it reads texts as training did.

- The cleaning of texts that `prepare` was told to do is the first part of its normalizer.
- A special token that is written in a text is letters: where the model of a tokenizer has the token as a piece
  (unigram, WordPiece, words), its pre-tokenizer ends by cutting it after its first character.
- Ids have no holes: entries that no text gives stand in them, so that added tokens come after all others.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from transpooler.common import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CARRIAGE_RETURNS = "\r\n?"
CONTROL_CHARACTERS = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]"
_NEVER = "(?!)"
_CLEANING, _LETTERS = "(?#transpooler: cleaning", "(?#transpooler: special tokens are letters"
_LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
_MAX_HOLES = 10_000_000


def bind_cleaning(tokenizer: "PreTrainedTokenizerFast", unicode_form: str | None, control_characters: bool) -> None:
    """Let the tokenizer clean every text as `clean_text` does, in place of the cleaning that it was bound to."""
    backend: Any = tokenizer.backend_tokenizer
    steps, kind = _without_rules("normalizer", _state(backend.normalizer))
    # The first step says, in a comment of its pattern, what was set, and what stood there before (see _without_rules).
    mark = f"{_CLEANING}, unicode_form={unicode_form}, control_characters={control_characters}, {kind})"
    rules = [_replace(mark + (CARRIAGE_RETURNS if control_characters else _NEVER), "\n")]
    if control_characters:
        rules.append(_replace(CONTROL_CHARACTERS, ""))
    if unicode_form:
        rules.append({"type": unicode_form})
    backend.normalizer = _build("normalizer", [*rules, *steps])


def without_cleaning(backend: Any) -> Any:
    """The normalizer of a tokenizer (of the tokenizers library) for texts that are clean already."""
    steps, _ = _without_rules("normalizer", _state(backend.normalizer))
    return _build("normalizer", steps) if steps else None


def shield_special_tokens(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Make special tokens that are written in a text letters, if the tokenizer's model would take them for the tokens.

    Those of the added vocabulary are letters already where `encode_special_tokens` is set.
    """
    backend: Any = tokenizer.backend_tokenizer
    names = [str(name) for name in tokenizer.all_special_tokens if len(name) > 1 and name in tokenizer.get_vocab()]
    if any(_is_matched(backend, name) for name in names):
        steps, kind = _without_rules("pre_tokenizer", _state(backend.pre_tokenizer))
        ends = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in sorted(names))
        pattern = {"Regex": f"{_LETTERS}, {kind})(?:{ends})"}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        backend.pre_tokenizer = _build("pre_tokenizer", [*steps, split])


def without_rules(state: dict[str, Any]) -> dict[str, Any]:
    """A serialised tokenizer without these rules: what decides which id means what."""
    state = dict(state)
    for part in _LISTS:
        steps, kind = _without_rules(part, state.get(part))
        if kind == "list":
            state[part] = {**state[part], _LISTS[part]: steps}
        else:
            state[part] = steps[0] if steps else None
    return state


def has_holes(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the ids are not 0, 1, 2, ... with one entry each: some are missing, or added tokens have others' ids."""
    ids = tokenizer.get_vocab().values()
    return set(ids) != set(range(len(ids)))


def fill_holes(state: dict[str, Any], name: str) -> None:
    """Put an entry that no text gives into every hole of a serialised tokenizer. UserError: more than ten million."""
    vocab = state["model"]["vocab"]
    if not isinstance(vocab, dict):  # a list has no holes
        return
    taken = set(vocab.values())
    added = [item for item in state["added_tokens"] if item["content"] in vocab or item["id"] not in taken]
    taken.update(item["id"] for item in added)
    size = max(taken, default=-1) + 1
    if size > len(taken) + _MAX_HOLES:
        raise UserError(f"{name}: has {len(taken):,} tokens, but ids up to {size - 1:,}; number them anew")
    holes = set(range(size)) - taken
    vocab.update({f"<no token {number}>": number for number in sorted(holes)})
    state["added_tokens"] = sorted(added, key=lambda item: item["id"])


def _is_matched(backend: Any, name: str) -> bool:
    was, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        texts = (name, f" {name}", f"a{name}b", f"a {name} b")
        return any(backend.token_to_id(name) in backend.encode(text, add_special_tokens=False).ids for text in texts)
    finally:
        backend.encode_special_tokens = was


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _without_rules(part: str, state: dict[str, Any] | None) -> tuple[list[dict[str, Any]], str]:
    """The steps of a normalizer or pre-tokenizer that are not of here; and what they were: none, one or a list."""
    if state is None:
        return [], "none"
    if state["type"] != "Sequence":
        return [state], "one"
    steps = state[_LISTS[part]]
    pattern = _pattern(steps[0] if part == "normalizer" else steps[-1]) if steps else ""
    if part == "normalizer" and pattern.startswith(_CLEANING):
        mark = pattern[: pattern.index(")")]
        num_rules = 1 + ("control_characters=True" in mark) + ("unicode_form=None" not in mark)
        return steps[num_rules:], mark.rpartition(" ")[2]
    if part == "pre_tokenizer" and pattern.startswith(_LETTERS):
        return steps[:-1], pattern[: pattern.index(")")].rpartition(" ")[2]
    return steps, "list"


def _pattern(step: dict[str, Any]) -> str:
    pattern = step.get("pattern")
    return pattern.get("Regex", "") if isinstance(pattern, dict) else ""


def _state(component: Any) -> dict[str, Any] | None:
    return None if component is None else json.loads(component.__getstate__())


def _build(part: str, steps: list[dict[str, Any]]) -> Any:
    """A normalizer or pre-tokenizer of these steps."""
    from tokenizers import Tokenizer, models

    state = json.loads(Tokenizer(models.BPE()).to_str())
    state[part] = {"type": "Sequence", _LISTS[part]: steps}
    return getattr(Tokenizer.from_str(json.dumps(state)), part)

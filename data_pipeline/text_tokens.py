"""Between a text and its tokens: its first tokens with their places, and the bytes that each token is.

Exported models carry this file: it imports nothing of ours.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Head = Callable[[int], str]
"""Given n, returns the first n characters of a text or more, fewer only if it ends. The rest need not be read."""
_CHARACTERS_A_TOKEN = 8
"""Most texts have fewer characters a token, so that one attempt suffices."""
UNSETTLED_WORDS = 32
"""Words before a cut that are not used: it may change the last one or two, or more if an added token spans words."""
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


def head_of(text: str) -> Head:
    """Return the `Head` of a text in memory."""
    return lambda num_characters: text[:num_characters]


class Leading(NamedTuple):
    """The beginning of a text."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """Characters [start, end) of each token in the text as it was given."""
    whole: bool
    """Whether these are all."""


def leading_tokens(tokenizer: "PreTrainedTokenizerFast", head: Head, limit: int) -> Leading:
    """Return the first `limit` tokens of a text (all if it has fewer).

    The ids are those that encoding the whole text gives, but no more of it than necessary is read, through `head`. This
    works because words (in the sense of the tokenizer's pre-tokenizer) are encoded one by one: a prefix that ends at
    white space can differ from the whole text only in its last words, which are not used. If the tokenizer does not
    split texts into words, or a text has no white space, the whole text is encoded.
    """
    size = _CHARACTERS_A_TOKEN * (limit + UNSETTLED_WORDS)
    while True:
        text = head(size)[:size]
        whole = len(text) < size
        parts = [text] if whole else text.rsplit(maxsplit=1)
        if whole or len(parts) == 2:
            # `split_special_tokens` encodes special tokens in a text as characters: no document can end itself by </s>.
            encoded = tokenizer(parts[0], add_special_tokens=False, split_special_tokens=True, verbose=False)
            ids, words = encoded.input_ids, encoded.word_ids()
            settled = words and bisect_left(words, words[-1] - UNSETTLED_WORDS) > limit
            if whole or settled:
                return Leading(ids[:limit], encoded.encodings[0].offsets[:limit], whole and len(ids) <= limit)
        size *= 2


def token_bytes(tokenizer: "PreTrainedTokenizerFast") -> list[bytes]:
    """Return for each id the UTF-8 bytes that it is in a text; a token that begins or ends a word has its space.

    Where the model falls back to bytes, `<0x0A>` is a newline, whatever the decoder makes of it, or if there is none.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, rules = state["model"], [state[part] for part in ("normalizer", "pre_tokenizer", "decoder")]
    kinds = {kind for rule in rules for kind in _kinds(rule)}
    falls_back = model.get("byte_fallback") or "ByteFallback" in kinds
    suffix = model.get("end_of_word_suffix") or ""
    prefix = "" if suffix else model.get("continuing_subword_prefix") or "##"
    spell = _choose_spelling(kinds, _SPACE in json.dumps(rules, ensure_ascii=False), prefix)

    def bytes_of(token: str) -> bytes:
        if falls_back and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        ends_word = bool(suffix) and token.endswith(suffix)
        return spell(token.removesuffix(suffix)) + b" " * ends_word

    return [bytes_of(token or "") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]


def _choose_spelling(kinds: set[str], marks_spaces: bool, prefix: str) -> Callable[[str], bytes]:
    """How tokens are spelt: in letters that stand for bytes, with one for a space, or as (pieces of) words."""
    if "ByteLevel" in kinds:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        byte_of = {char: bytes([byte]) for byte, char in bytes_to_unicode().items()}
        return lambda token: b"".join(byte_of.get(char) or char.encode() for char in token)
    if marks_spaces:
        return lambda token: token.replace(_SPACE, " ").encode()
    return lambda token: (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()


def _kinds(rule: dict[str, Any] | None) -> Iterator[str]:
    """The types of a serialised normalizer, pre-tokenizer or decoder, and of its steps."""
    if rule is not None:
        yield rule["type"]
        for name in ("normalizers", "pretokenizers", "decoders"):
            for step in rule.get(name, ()):
                yield from _kinds(step)


def leading_special_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the special tokens that it puts before a text that it ends by </s>, as BART's does with <s>."""
    ids = tokenizer("", add_special_tokens=True).input_ids
    return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else []


def without_frame(
    rows: Iterable[Sequence[int]], tokenizer: "PreTrainedTokenizerFast", forced_bos_token_id: int | None
) -> list[list[int]]:
    """Return written texts, as ids, without what begins, ends and pads them."""
    frame = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, forced_bos_token_id}
    return [[token for token in row if token not in frame] for row in rows]

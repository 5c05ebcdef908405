"""Cleaning and filtering of single documents. A filter returns the reason why a document is dropped, or None.

No rule depends on a language: letters are those of Unicode, words are what stands between spaces.
The shares follow the repetition rules of Rae et al. 2021 (Gopher, arXiv 2112.11446, table A1).
"""

import hashlib
import re
import unicodedata
from collections import Counter

from transpooler.common import cut_at_white_space, is_blank
from transpooler.data_pipeline.config import CleanConfig
from transpooler.data_pipeline.tokenizer_rules import CARRIAGE_RETURNS, CONTROL_CHARACTERS

_CONTROLS = re.compile(CONTROL_CHARACTERS)
_CARRIAGE_RETURNS = re.compile(CARRIAGE_RETURNS)
_MARKS_AND_DIGITS = re.compile(r"[\W\d_]")
_HASHED_CHARACTERS = 1 << 20
_NOT_SPACE = re.compile(r"\S+")


def clean_text(text: str, config: CleanConfig) -> str:
    """Return the text without control characters (tabs and line feeds stay), in its normal form.

    A tokenizer that `bind_cleaning` was given does the same to every text. Cleaning twice changes nothing.
    """
    if config.control_characters and not text.isprintable():
        if "\r" in text:
            text = _CARRIAGE_RETURNS.sub("\n", text)
        if _CONTROLS.search(text):
            text = _CONTROLS.sub("", text)
    form = config.unicode_form
    if form and not unicodedata.is_normalized(form, text):  # type: ignore[arg-type]
        text = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    return text


def find_length_problem(source: str, target: str | None, config: CleanConfig) -> str | None:
    """Check the limits in characters, and the summary's length relative to the document's."""
    for name, text in (("source", source), ("target", target)):
        if text is None:
            continue
        low, high = getattr(config, f"min_{name}_characters"), getattr(config, f"max_{name}_characters")
        if len(text) < low or is_blank(text):
            return f"empty_{name}" if is_blank(text) else f"{name}_too_few_characters"
        if high is not None and len(text) > high:
            return f"{name}_too_many_characters"
    ratio = config.max_target_source_ratio
    if target is not None and ratio is not None and len(target) > ratio * len(source):
        return "target_source_ratio"
    return None


def find_quality_problem(text: str, config: CleanConfig) -> str | None:
    """Find signs of text that is no prose: few letters, very long words, repeated lines or word sequences."""
    words = _NOT_SPACE.findall(text)
    characters = sum(map(len, words))
    letters = len(_MARKS_AND_DIGITS.sub("", text))
    if letters < config.min_letter_share * characters:
        return "quality_few_letters"
    if characters > config.max_mean_word_characters * len(words) and text.isascii():
        return "quality_long_words"  # scripts without spaces between words are not ASCII
    lines = [line for line in text.split("\n") if line.strip()]
    if _count_repeated(lines) > config.max_repeated_line_share * characters:
        return "quality_repeated_lines"
    fives = [" ".join(words[i : i + 5]) for i in range(0, len(words) - 4, 5)]
    if _count_repeated(fives) > config.max_repeated_words_share * characters:
        return "quality_repeated_words"
    return None


def hash_content(text: str) -> bytes:
    """Return 16 bytes that are equal for texts that differ only in spacing and case."""
    digest, first = hashlib.blake2b(digest_size=16), True
    for part in cut_at_white_space(text, _HASHED_CHARACTERS):  # the words of a whole book would take a gigabyte
        if words := part.lower().split():
            digest.update(("" if first else " ").encode() + " ".join(words).encode())
            first = False
    return digest.digest()


def _count_repeated(parts: list[str]) -> int:
    """Count the characters, without spaces, of parts that occurred before."""
    return sum(len("".join(part.split())) * (count - 1) for part, count in Counter(parts).items() if count > 1)

"""Cleaning and filtering of single documents. A filter answers with the reason why a document goes, or None.

Nothing here knows a language: letters are what Unicode calls letters, words are what stands between spaces.
The shares follow the repetition rules of Rae et al. 2021 (Gopher, arXiv 2112.11446, table A1).
"""

import hashlib
import re
import unicodedata
from collections import Counter

from transpooler.data_pipeline.config import CleanConfig

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_CARRIAGE_RETURNS = re.compile("\r\n?")
_MARKS_AND_DIGITS = re.compile(r"[\W\d_]")
_NOT_SPACE = re.compile(r"\S+")


def clean_text(text: str, config: CleanConfig) -> str:
    """The text in its normal form, without control characters (tabs and line feeds stay)."""
    form = config.unicode_form
    if form and not unicodedata.is_normalized(form, text):  # type: ignore[arg-type]
        text = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    if config.control_characters and not text.isprintable():
        if "\r" in text:
            text = _CARRIAGE_RETURNS.sub("\n", text)
        if _CONTROLS.search(text):
            text = _CONTROLS.sub("", text)
    return text


def length_problem(source: str, target: str | None, config: CleanConfig) -> str | None:
    """Limits in characters, and the summary's share of the document."""
    for name, text in (("source", source), ("target", target)):
        if text is None:
            continue
        low, high = getattr(config, f"min_{name}_characters"), getattr(config, f"max_{name}_characters")
        if len(text) < low or not text.strip():
            return f"{name}_too_few_characters" if text.strip() else f"empty_{name}"
        if high is not None and len(text) > high:
            return f"{name}_too_many_characters"
    ratio = config.max_target_source_ratio
    if target is not None and ratio is not None and len(target) > ratio * len(source):
        return "target_source_ratio"
    return None


def quality_problem(text: str, config: CleanConfig) -> str | None:
    """Language-free signs of what is no prose: few letters, very long words, repeated lines or word sequences."""
    words = _NOT_SPACE.findall(text)
    characters = sum(map(len, words))
    letters = len(_MARKS_AND_DIGITS.sub("", text))
    if letters < config.min_letter_share * characters:
        return "quality_few_letters"
    if characters > config.max_mean_word_characters * len(words) and text.isascii():
        return "quality_long_words"  # scripts without spaces between words are not ASCII
    lines = [line for line in text.split("\n") if line.strip()]
    if _repeated_characters(lines) > config.max_repeated_line_share * characters:
        return "quality_repeated_lines"
    fives = [" ".join(words[i : i + 5]) for i in range(0, len(words) - 4, 5)]
    if _repeated_characters(fives) > config.max_repeated_words_share * characters:
        return "quality_repeated_words"
    return None


def content_hash(text: str) -> bytes:
    """16 bytes; the same for texts that differ in spacing and case alone."""
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=16).digest()


def _repeated_characters(parts: list[str]) -> int:
    """Characters that are no spaces, in parts that stood before."""
    return sum(len("".join(part.split())) * (count - 1) for part, count in Counter(parts).items() if count > 1)

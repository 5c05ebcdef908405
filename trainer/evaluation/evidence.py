"""Evidence recall: how much of what a summary speaks of reached the decoder."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

MIN_LETTERS = 5
"""Shorter words are mostly grammar; numbers count at any length."""
FUNCTION_WORDS = frozenset(
    b"about above after again against along among around because before being below between could during either every "
    b"first might other others rather shall should since still their theirs there these those through under until "
    b"using where whether which while whose within without would".split()
)
_WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")


def evidence_recall(
    source: Sequence[int], weights_N: np.ndarray, summary: Sequence[int], token_bytes: Sequence[bytes]
) -> float | None:
    """The mean weight with which the summary's content words reached the decoder; None where the source has none.

    weights_N (N,) in 0..1: how much of each source token flowed into its slot, as `model.select` gives it: 1 for a
    token that was kept alone, 1/r for one of r that were averaged, 0 for one that was dropped. An occurrence of a word
    weighs what its tokens do on average, a word what its heaviest occurrence does. Content words have five letters or
    more (a few function words aside) or digits; capitals do not matter.
    """
    wanted = {word for word, _, _ in _words(summary, token_bytes)}
    heaviest: dict[bytes, float] = {}
    for word, first, last in _words(source, token_bytes):
        if word in wanted:
            heaviest[word] = max(heaviest.get(word, 0.0), float(np.mean(weights_N[first : last + 1])))
    return float(np.mean(list(heaviest.values()))) if heaviest else None


def _words(ids: Sequence[int], token_bytes: Sequence[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """(word, its first token, its last token) of each content word."""
    parts = [token_bytes[token] for token in ids]
    ends = np.cumsum([len(part) for part in parts])
    for word, start, end in content_words(b"".join(parts)):
        first, last = np.searchsorted(ends, [start, end - 1], side="right")
        yield word, int(first), int(last)


def content_words(text: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(word in small letters, its first byte, the byte after its last one) of each content word of a text in UTF-8."""
    for match in _WORD.finditer(text):
        word = match.group().lower()
        if re.search(rb"\d", word) or (len(word) >= MIN_LETTERS and word not in FUNCTION_WORDS):
            yield word, match.start(), match.end()

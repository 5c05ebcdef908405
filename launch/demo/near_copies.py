"""Near-copies among texts, by a sketch of their lines (bottom-k MinHash)."""

import hashlib
import re
from collections import Counter, defaultdict

SKETCH_SIZE = 64
SAME_SHARE = 0.5
"""Texts that share this part of the smaller sketch are near-copies."""
_MIN_LINE_CHARACTERS = 12
_NOT_LETTERS = re.compile(r"[\W\d_]+")


class NearCopies:
    """Remembers what it has seen: 64 numbers a text."""

    def __init__(self) -> None:
        self._texts_with: dict[int, list[int]] = defaultdict(list)
        self._sizes: list[int] = []
        self._summaries: set[str] = set()

    def add_if_new(self, text: str, summary: str | None) -> bool:
        """False if `text` is a near-copy, or `summary` a copy, of one seen before; else remember both.

        Spacing, case, digits and punctuation do not count.
        """
        plain_summary = _NOT_LETTERS.sub(" ", (summary or "").lower())
        sketch = _sketch(text)
        shared = Counter(other for value in sketch for other in self._texts_with.get(value, ()))
        copy = any(count >= SAME_SHARE * min(len(sketch), self._sizes[other]) for other, count in shared.most_common(1))
        if copy or plain_summary in self._summaries:
            return False
        for value in sketch:
            self._texts_with[value].append(len(self._sizes))
        self._sizes.append(len(sketch))
        if summary is not None:
            self._summaries.add(plain_summary)
        return True


def _sketch(text: str) -> list[int]:
    """The smallest hashes of the text's lines."""
    lines = {line for line in map(str.strip, text.lower().split("\n")) if len(line) >= _MIN_LINE_CHARACTERS}
    plain = {_NOT_LETTERS.sub(" ", line) for line in lines}
    hashes = (int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big") for line in plain)
    return sorted(hashes)[:SKETCH_SIZE]

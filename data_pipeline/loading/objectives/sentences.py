"""Sentences of a document, found on token ids."""

import numpy as np

MAX_UNIT_TOKENS = 128
"""Longer stretches without an end of sentence are cut here."""
MIN_UNIT_TOKENS = 6
"""Shorter sentences (a bracket on a line of its own, "e.g.") join the next one."""


class SentenceEnds:
    """Where sentences end, decided on ids: tables over the vocabulary, made once from its tokens' text.

    A sentence ends after a token with a newline (so that lines of code are units), and after a token that ends in
    . ! or ? if the next one begins with white space.
    """

    def __init__(self, tokens: list[str]) -> None:
        texts = [token.translate(_VISIBLE_WHITE_SPACE) for token in tokens]
        self.has_newline = np.array(["\n" in text for text in texts])
        self.ends = np.array([text.rstrip("\"')”’").endswith((".", "!", "?", "。")) for text in texts])
        self.begins_with_space = np.array([text[:1].isspace() for text in texts])

    def after(self, source: np.ndarray) -> np.ndarray:
        """Positions p such that a sentence ends before token p (0 and the end of the document left out)."""
        ends = self.has_newline[source[:-1]] | (self.ends[source[:-1]] & self.begins_with_space[source[1:]])
        return np.flatnonzero(ends) + 1


# Byte-level BPE spells space, newline, tab and return as Ġ Ċ ĉ č; SentencePiece spells space as ▁.
_VISIBLE_WHITE_SPACE = str.maketrans({"Ġ": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r", "▁": " "})


def split_units(source: np.ndarray, boundaries: SentenceEnds) -> list[tuple[int, int]]:
    """Cut a document into sentences [start, stop), at least two where it has two tokens."""
    units: list[tuple[int, int]] = []
    start, end = 0, len(source)
    for stop in [*boundaries.after(source).tolist(), end]:
        length = stop - start
        while length > MAX_UNIT_TOKENS:
            units.append((start, start + MAX_UNIT_TOKENS))
            start += MAX_UNIT_TOKENS
            length -= MAX_UNIT_TOKENS
        if length >= MIN_UNIT_TOKENS or (stop == end and length):
            units.append((start, stop))
            start = stop
    if len(units) == 1 and len(source) > 1:
        units = [(0, len(source) // 2), (len(source) // 2, len(source))]
    return units


def permute_sentences(source: np.ndarray, boundaries: SentenceEnds, rng: np.random.Generator) -> np.ndarray:
    """The sentences of a document in random order: BART's second noise (Lewis et al. 2020, section 2.2)."""
    units = split_units(source, boundaries)
    if not units:
        return source
    return np.concatenate([source[slice(*units[unit])] for unit in rng.permutation(len(units))])

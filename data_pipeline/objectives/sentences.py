"""Sentences of a document, found on token ids."""

import numpy as np

MAX_UNIT_TOKENS = 128
"""Longer stretches without an end of sentence are cut here."""
MIN_UNIT_TOKENS = 6
"""Shorter sentences (a bracket on a line of its own, "e.g.") join the next one."""


class SentenceEnds:
    """Finds the ends of sentences on ids, with tables over the vocabulary that are made once from its tokens' text.

    A sentence ends after a token that holds a newline (so each line of code is a unit), and after a token that ends in
    . ! or ? if the next token begins with white space.
    """

    def __init__(self, tokens: list[str]) -> None:
        texts = [token.translate(_VISIBLE_WHITE_SPACE) for token in tokens]
        self.has_newline = np.array(["\n" in text for text in texts])
        self.ends = np.array([text.rstrip("\"')”’").endswith((".", "!", "?", "。")) for text in texts])
        self.begins_with_space = np.array([text[:1].isspace() for text in texts])

    def find(self, source: np.ndarray) -> np.ndarray:
        """Return the positions p (int64, ascending) such that a sentence ends between tokens p - 1 and p."""
        ends = self.has_newline[source[:-1]] | (self.ends[source[:-1]] & self.begins_with_space[source[1:]])
        return np.flatnonzero(ends) + 1


# Byte-level BPE spells space, newline, tab and return as Ġ Ċ ĉ č; SentencePiece spells space as ▁.
_VISIBLE_WHITE_SPACE = str.maketrans({"Ġ": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r", "▁": " "})


def split_units(source: np.ndarray, boundaries: SentenceEnds) -> list[tuple[int, int]]:
    """Cut a document into sentences [start, stop); at least two, if it has two tokens."""
    units: list[tuple[int, int]] = []
    start, end = 0, len(source)
    for stop in [*boundaries.find(source).tolist(), end]:
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
    """Shuffle the sentences of a document, which is BART's second noise (Lewis et al. 2020, section 2.2)."""
    units = split_units(source, boundaries)
    if not units:
        return source
    return np.concatenate([source[slice(*units[unit])] for unit in rng.permutation(len(units))])

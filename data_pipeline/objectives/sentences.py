"""Sentences of a document, found on token ids."""

import re
from collections.abc import Sequence

import numpy as np

MAX_UNIT_TOKENS = 128
"""Longer stretches without an end of sentence are cut here."""
MIN_UNIT_TOKENS = 6
"""Shorter sentences (a bracket on a line of its own, "e.g.") join the next one."""


_QUOTES = r"""(?:["')\]]|”|’|»|」|』|）)*"""
# Each alternative begins with a literal byte, for which the module `re` searches four times as fast.
_STOPS = [*(rf"\{stop}{_QUOTES}(?=[^\S\n])" for stop in ".!?"), *(f"{stop}{_QUOTES}" for stop in "。！？｡．")]
_ENDS = re.compile("|".join(["\n", *_STOPS]).encode())


class SentenceEnds:
    """Finds the ends of sentences on ids, with the bytes of each token (`token_bytes`), so that every tokenizer is read
    alike: one that splits a character into tokens, one that spells bytes, one that takes words without their spaces.

    A sentence ends after the token that holds a newline (so each line of code is a unit), after one that ends in . ! or
    ? if a space follows, and after the full stops of Chinese and Japanese; closing quotes belong to it.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = np.array(tokens, object)
        self._lengths = np.array([len(token) for token in tokens], np.int64)

    def find(self, source: np.ndarray) -> np.ndarray:
        """Return the positions p (int64, ascending) such that a sentence ends between tokens p - 1 and p."""
        text = b"".join(self._tokens[source].tolist())
        ends = np.fromiter((match.end() for match in _ENDS.finditer(text)), np.int64)
        found = np.unique(np.searchsorted(np.cumsum(self._lengths[source]), ends) + 1)
        return found[found < len(source)]


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


def count_forced_cuts(source: np.ndarray, boundaries: SentenceEnds) -> tuple[int, int]:
    """Return how many of a document's units end only because they are MAX_UNIT_TOKENS long, and how many it has."""
    units = split_units(source, boundaries)
    ends = {*boundaries.find(source).tolist(), len(source)}
    return sum(stop - start == MAX_UNIT_TOKENS and stop not in ends for start, stop in units), len(units)


def permute_sentences(source: np.ndarray, boundaries: SentenceEnds, rng: np.random.Generator) -> np.ndarray:
    """Shuffle the sentences of a document, which is BART's second noise (Lewis et al. 2020, section 2.2)."""
    units = split_units(source, boundaries)
    if not units:
        return source
    return np.concatenate([source[slice(*units[unit])] for unit in rng.permutation(len(units))])

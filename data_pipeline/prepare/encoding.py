"""Long texts to ids, in pieces."""

from typing import Any

import numpy as np

from transpooler.data_pipeline.text_tokens import UNSETTLED_WORDS

_COMPARED_TOKENS = 64
"""Tokens on which two pieces must agree."""


def encode_long(tokenizer: Any, text: str, size: int) -> list[np.ndarray]:
    """Encode a text in pieces of about `size` characters, because memory grows with a piece (125 bytes a character).

    `tokenizer` is of the tokenizers library. Pieces are cut at white space and overlap by some words, of which the ids
    must agree; together they are the whole text's ids (uint32). Where nothing separates words, there is one piece.
    """
    pieces: list[np.ndarray] = []
    start = joint = 0  # of the piece, and of the first word that is taken from it, in characters of the text
    expected = np.zeros(0, np.uint32)
    while True:
        piece = text[start : start + size]
        whole = start + size >= len(text)
        parts = [piece] if whole else piece.rsplit(maxsplit=1) or [piece]
        encoded = tokenizer.encode(parts[0], add_special_tokens=False)
        ids, offsets = np.array(encoded.ids, np.uint32), encoded.offsets
        words = np.array([-1 if word is None else word for word in encoded.word_ids])
        starts = np.flatnonzero(np.diff(words, prepend=-2)).tolist()
        first = next((i for i in starts if start + offsets[i][0] == joint), None) if joint else 0
        agrees = first is not None and np.array_equal(ids[first : first + len(expected)], expected)
        if agrees and whole:
            return [*pieces, ids[first:]]
        if not agrees or len(starts) < 4 * UNSETTLED_WORDS or len(parts) == 1:
            return [np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)]
        end = starts[-2 * UNSETTLED_WORDS]
        pieces.append(ids[first:end])
        joint, expected = start + offsets[end][0], ids[end : starts[-UNSETTLED_WORDS]][:_COMPARED_TOKENS]
        start += offsets[starts[-3 * UNSETTLED_WORDS]][0]

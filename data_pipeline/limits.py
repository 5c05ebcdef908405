"""The one rule for limits of tokens: a limit includes the </s> that ends every source and target."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Length = TypeVar("Length", int, np.ndarray)


def begin(tokens: np.ndarray | Sequence[int], prefix: Sequence[int]) -> np.ndarray | Sequence[int]:
    """Return the ids behind those of the prefix."""
    return np.concatenate([np.asarray(prefix, np.int64), tokens]) if prefix else tokens


def cut(tokens: np.ndarray | Sequence[int], limit: int, eos: int) -> np.ndarray:
    """Return the first `limit` - 1 raw ids, and `eos` after them; int64."""
    return np.append(np.asarray(tokens[: limit - 1], np.int64), eos)


def cut_length(length: Length, limit: int) -> Length:
    """Return the length (of any integer type) that `cut` gives to a text of `length` raw ids."""
    return np.minimum(length, limit - 1) + 1

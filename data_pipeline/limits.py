"""The one rule for limits of tokens: a limit includes what begins a source or target, and the </s> that ends it."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Length = TypeVar("Length", int, np.ndarray)


def cut(tokens: np.ndarray | Sequence[int], limit: int, eos: int, prefix: Sequence[int] = ()) -> np.ndarray:
    """Return the prefix, as many raw ids as the limit leaves room for, and `eos` after them; int64."""
    room = max(0, limit - 1 - len(prefix))
    return np.concatenate([np.asarray(part, np.int64) for part in (prefix[: limit - 1], tokens[:room], [eos])])


def cut_length(length: Length, limit: int, num_prefix: int = 0) -> Length:
    """Return the length (of any integer type) that `cut` gives to a text of `length` raw ids."""
    return np.minimum(length + num_prefix, limit - 1) + 1

"""What a model read while it wrote: attention to the slots, averaged over layers and heads.

Maps are averaged as they are made, so that one layer's is held at a time.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from transpooler.model.outputs import Selection

EVERYTHING = slice(None)


class Trace(NamedTuple):
    """What was read of one document for each token of a text about it."""

    attention_TS: Tensor
    """float32: attention of the T tokens to the S slots."""
    selection: Selection
    """Which slot each source token flowed into, and with what weight."""


class MeanAttention:
    """The mean of attention maps over heads and modules."""

    def __init__(self, queries: slice = EVERYTHING, keys: slice = EVERYTHING) -> None:
        self._at = (0, EVERYTHING, queries, keys)
        self._total: Tensor | None = None
        self._count = 0

    def add(self, weights_1HTS: Tensor) -> None:
        """Take one module's weights of one document."""
        mean_TS = weights_1HTS[self._at].float().mean(0)
        self._total = mean_TS if self._total is None else self._total + mean_TS
        self._count += 1

    def result(self) -> Tensor:
        """(T, S) float32."""
        if self._total is None:
            raise RuntimeError("no attention module gave weights; eager attention is needed")
        return self._total / self._count


@contextmanager
def averaged(read: Iterable[nn.Module], mean: MeanAttention, dropped: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Within, `mean` takes the weights of the modules `read`, whose outputs are (states, weights, ...).

    Neither these weights nor those of the modules `dropped` are passed on to be collected. Passes of other threads
    through the same modules are left alone.
    """

    wanted, thread = set(read), threading.get_ident()

    def take(module: nn.Module, given: Any, output: tuple) -> tuple | None:
        if threading.get_ident() != thread:
            return None
        if module in wanted and output[1] is not None:
            mean.add(output[1])
        return (output[0], None, *output[2:])

    hooks = [module.register_forward_hook(take) for module in (*wanted, *dropped)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_single(input_ids: Tensor, written: Tensor) -> None:
    """ValueError unless both are one row of token ids."""
    if input_ids.dim() != 2 or written.dim() != 2 or len(input_ids) != 1 or len(written) != 1:
        shapes = f"{tuple(input_ids.shape)} and {tuple(written.shape)}"
        raise ValueError(f"input_ids and written: {shapes}; expected one document (1, N) and its text (1, T)")

"""Long documents without gradients: blocks go through the layers piece by piece, so that memory holds one piece more.

Blocks do not see one another, so nothing changes but what is held at a time: between two poolings the input's hidden
states, and the activations of one piece. (Staggered blocks see one another from layer to layer: there a layer is run on
all pieces before the next one.)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from transpooler.model.layout import Layout, Piece

PIECE_TOKENS = 16_384
"""Packed tokens that go through the layers together."""


_watchers: list[Callable[[int], None]] = []


@contextmanager
def watching(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, `note` hears of each piece that is done: its tokens times the layers that they went through."""
    _watchers.append(note)
    try:
        yield
    finally:
        _watchers.remove(note)


def streams(num_tokens: int, like: Tensor) -> bool:
    """Whether so many tokens are cut: not where gradients are wanted or the graph is traced."""
    traced = torch.compiler.is_compiling() or like.is_meta
    return num_tokens > PIECE_TOKENS and not torch.is_grad_enabled() and not traced


def run_in_pieces(
    run: Callable[[slice, Layout | Piece], Tensor], layout: Layout, like: Tensor, num_layers: int
) -> Tensor:
    """Put together what `run` makes, (P', D), of the packed tokens of each slice; of all at once if they are few."""
    num_tokens = sum(layout.lengths)
    if not streams(num_tokens, like):
        return run(slice(0, num_tokens), layout)
    whole: Tensor | None = None
    for piece in layout.pieces(PIECE_TOKENS):
        part = run(slice(piece.start, piece.end), piece)
        if whole is None:
            whole = part.new_empty((num_tokens, *part.shape[1:]))
        whole[piece.start : piece.end] = part
        for note in _watchers:
            note((piece.end - piece.start) * num_layers)
    return cast(Tensor, whole)


def map_in_pieces(function: Callable[[Tensor], Tensor], x_BND: Tensor) -> Tensor:
    """`function`, which treats tokens one by one, of (B, N, D) -> (B, N, ...), a part of N after the other."""
    if not streams(x_BND.shape[1], x_BND):
        return function(x_BND)
    return torch.cat([function(part) for part in x_BND.split(PIECE_TOKENS, dim=1)], dim=1)

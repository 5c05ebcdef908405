"""Long documents: blocks go through the layers piece by piece, so that memory holds the activations of one piece.

Blocks do not see one another, so nothing changes but what is held at a time: between two poolings the input's hidden
states, and one piece. Without gradients that is all; with them (`cutting("always")`) each piece is computed again in
the backward pass (activation checkpointing, arXiv 1604.06174, whose segment is a piece). Staggered blocks see one
another from layer to layer: there a layer is run on all pieces before the next one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from transpooler.model.layout import Layout, Piece

PIECE_TOKENS = 16_384
"""Packed tokens that go through the layers together."""
CUTS = ("without_gradients", "always", "never")

_watchers: list[Callable[[int], None]] = []
_cut = CUTS[0]


@contextmanager
def watching(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, `note` hears of each piece that is done: its tokens times the layers that they went through."""
    _watchers.append(note)
    try:
        yield
    finally:
        _watchers.remove(note)


@contextmanager
def cutting(when: str) -> Iterator[None]:
    """Inside, documents are cut `when`: one of CUTS.

    "never" is for weights that ranks fetch together: all ranks must then run each layer equally often.
    """
    global _cut
    before, _cut = _cut, when
    try:
        yield
    finally:
        _cut = before


def streams(num_tokens: int, like: Tensor) -> bool:
    """Whether so many tokens are cut: not where the graph is traced, nor, unless told so, with gradients."""
    wanted = _cut == "always" or (_cut != "never" and not torch.is_grad_enabled())
    return wanted and num_tokens > PIECE_TOKENS and not torch.compiler.is_compiling() and not like.is_meta


def run_in_pieces(
    run: Callable[[Tensor, slice, Layout | Piece], Tensor], layout: Layout, x: Tensor, num_layers: int
) -> Tensor:
    """What `run` makes of the packed tokens x (P, ...), given with their place and piece: (P, D); or of all at once."""
    num_tokens = sum(layout.lengths)
    if not streams(num_tokens, x):
        return run(x, slice(0, num_tokens), layout)
    pieces = list(layout.pieces(PIECE_TOKENS))
    if torch.is_grad_enabled():
        parts = x.split([piece.end - piece.start for piece in pieces])
        made = [
            checkpoint(run, part, slice(piece.start, piece.end), piece, use_reentrant=False)
            for part, piece in zip(parts, pieces, strict=True)
        ]
        return torch.cat(made)
    whole = x.new_empty(0)
    for piece in pieces:
        tokens = slice(piece.start, piece.end)
        part = run(x[tokens], tokens, piece)
        if not piece.start:
            whole = part.new_empty((num_tokens, *part.shape[1:]))
        whole[tokens] = part
        for note in _watchers:
            note((piece.end - piece.start) * num_layers)
    return whole


def map_in_pieces(function: Callable[[Tensor], Tensor], x_BND: Tensor) -> Tensor:
    """`function`, which treats tokens one by one, of (B, N, D) -> (B, N, ...), a part of N after the other."""
    if not streams(x_BND.shape[1], x_BND):
        return function(x_BND)
    parts = x_BND.split(PIECE_TOKENS, dim=1)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(function, part, use_reentrant=False) for part in parts], dim=1)
    return torch.cat([function(part) for part in parts], dim=1)

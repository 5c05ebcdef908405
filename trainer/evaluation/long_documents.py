"""What reading very long documents takes: said before, and shown while it lasts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from transpooler.common import Progress, say
from transpooler.model.layers.streaming import PIECE_TOKENS, watching

if TYPE_CHECKING:
    from transpooler.model import PoolingModel

SAID_FROM_TOKENS = 4 * PIECE_TOKENS
BYTES_OF_INDICES = 64
"""Of each token: ids, positions, scores and what the tournament keeps of them."""
WIDTHS_OF_ACTIVATIONS = 10
"""Activations of a piece that are held at once, in widths of the model, besides the feed-forward network's."""


@contextmanager
def watch_reading(model: "PoolingModel", lengths: Sequence[int]) -> Iterator[None]:
    """Say what memory a batch of so many tokens takes, if it is large, and then how far its reading is."""
    num_tokens = sum(lengths)
    if num_tokens < SAID_FROM_TOKENS:
        yield
        return
    needed, free = reading_bytes(model, lengths), psutil.virtual_memory().available
    on_cpu = model.device.type == "cpu"
    scarce = f", of which {free / 2**30:.1f} GiB are free: it may be killed" if on_cpu and needed > free else ""
    say(f"reading {num_tokens:,} tokens takes about {needed / 2**30:.1f} GiB beside the model{scarce}")
    bar = Progress(f"read {num_tokens:,} tokens (in layers)", reading_work(model, lengths))
    with watching(bar.advance):
        yield


def reading_work(model: "PoolingModel", lengths: Sequence[int]) -> int:
    """Tokens times layers of what streams."""
    work = done = 0
    for last, tokens in _sections(model, lengths):
        work += tokens * (last - done) if tokens > PIECE_TOKENS else 0
        done = last
    return work


def reading_bytes(model: "PoolingModel", lengths: Sequence[int]) -> int:
    """Estimated peak of the encoder without gradients: hidden states before and after a pooling, and one piece.

    Staggered layers run one by one, which holds those before and after a layer.
    """
    width, inner, of_number = _sizes(model)
    tokens = [tokens for _, tokens in _sections(model, lengths)]
    held = max(before + after for before, after in zip(tokens, [*tokens[1:], 0], strict=True))
    held = max(held, 2 * tokens[0] if getattr(model.config, "stagger_blocks", False) else 0)
    piece = min(tokens[0], PIECE_TOKENS) * (inner + WIDTHS_OF_ACTIVATIONS * width)
    return tokens[0] * BYTES_OF_INDICES + (held * width + piece) * of_number


def _sections(model: "PoolingModel", lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(last layer, tokens) of the layers up to each pooling, and of those behind the last."""
    for stage in model.stages:
        yield stage.after_layer, sum(lengths)
        lengths = [stage.slots(length) for length in lengths]
    yield _num_layers(model), sum(lengths)


def _num_layers(model: "PoolingModel") -> int:
    config = model.config
    return int(getattr(config, "encoder_layers", 0) or config.encoder.num_hidden_layers)


def _sizes(model: "PoolingModel") -> tuple[int, int, int]:
    """Width of the encoder, that of its feed-forward network, and bytes of a number."""
    config = model.config
    of_number = next(model.parameters()).element_size()
    if hasattr(config, "d_model"):
        return config.d_model, config.ffn_dim, of_number
    return config.encoder.hidden_size, config.encoder.intermediate_size, of_number

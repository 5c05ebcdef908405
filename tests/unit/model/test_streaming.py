"""Without gradients a long document goes through the layers piece by piece, and nothing else changes."""

from typing import Any

import pytest
import torch

from tests.unit.model.compressor.test_compressor import POOLING, compressor
from tests.unit.model.test_layout import encoder, ragged
from tests.unit.model.test_model import SETTINGS
from transpooler.model.layers import streaming
from transpooler.model.layout import Layout

LENGTHS = (61, 8, 3, 40)


def test_pieces_are_whole_blocks_of_all_tokens_in_order():
    layout = Layout(LENGTHS, 8, torch.device("cpu"))
    tokens = torch.arange(sum(LENGTHS))
    rows = layout.blocks.to_rows(tokens)
    for size, number in ((1, 15), (24, 5), (40, 3), (10**6, 1)):
        pieces = list(layout.pieces(size))
        assert len(pieces) == number
        assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
        assert pieces[-1].end == sum(LENGTHS)
        assert max(piece.end - piece.start for piece in pieces) <= max(size, 8)
        assert torch.equal(torch.cat([piece.blocks.to_rows(tokens[piece.start : piece.end]) for piece in pieces]), rows)
        masks = [piece.block_mask for piece in pieces if piece.block_mask is not None]
        assert layout.block_mask is not None
        assert torch.equal(torch.cat(masks), layout.block_mask)


def test_pieces_of_staggered_blocks_are_whole_ones():
    layout = Layout(LENGTHS, 8, torch.device("cpu")).staggered()
    tokens = torch.arange(1, sum(LENGTHS) + 1)  # 0 is an empty place
    rows = layout.blocks.to_rows(tokens)
    for size in (1, 24, 40, 10**6):
        pieces = list(layout.pieces(size))
        assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
        assert pieces[-1].end == sum(LENGTHS)
        assert max(piece.end - piece.start for piece in pieces) <= max(size, 8)
        assert torch.equal(torch.cat([piece.blocks.to_rows(tokens[piece.start : piece.end]) for piece in pieces]), rows)
        masks = [piece.block_mask for piece in pieces if piece.block_mask is not None]
        assert torch.equal(torch.cat(masks)[:, 0, 0], rows > 0)


@pytest.mark.parametrize("name", [*SETTINGS, "learned"])
@pytest.mark.parametrize("size", [8, 32])
def test_an_encoder_that_streams_gives_the_same(name, size, monkeypatch):
    model = encoder(**SETTINGS.get(name, {"positions": "learned", "block_positions": "block", "max_positions": 8}))
    batch = ragged(LENGTHS, width=64)
    with torch.no_grad():
        whole = model(**batch, output_pooling=True)
        monkeypatch.setattr(streaming, "PIECE_TOKENS", size)
        calls = _count_calls(model.layers[0])
        parts = model(**batch, output_pooling=True)
    assert len(calls) == len(list(_layout(model.config.block_size).pieces(size)))
    if name == "staggered":
        assert len(_count_and_stream(model, batch)) == len(list(_layout().staggered().pieces(size)))
    assert torch.equal(parts.positions, whole.positions)
    torch.testing.assert_close(parts.last_hidden_state, whole.last_hidden_state, atol=1e-5, rtol=1e-4)
    for part, other in zip(parts.pooled_stages, whole.pooled_stages, strict=True):
        assert torch.equal(part.groups_BN, other.groups_BN)
    assert len(_count_and_run(model, batch)) == 1, "with gradients it does not stream"


def test_a_compressor_that_streams_gives_the_same(monkeypatch):
    model: Any = compressor("llama", pooling=POOLING, block_size=8).encoder
    batch = ragged(LENGTHS, width=64)
    batch["input_ids"] %= 99
    with torch.no_grad():
        whole = model(**batch).last_hidden_state
        monkeypatch.setattr(streaming, "PIECE_TOKENS", 16)
        calls = _count_calls(model.stock.layers[0])
        parts = model(**batch).last_hidden_state
    assert len(calls) == len(list(_layout().pieces(16)))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*SETTINGS, "compressor"])
def test_gradients_of_chunks_are_those_of_the_whole(name, monkeypatch):
    """And a layer sees one piece at a time: in the forward pass, and again in the backward pass."""
    if name == "compressor":
        model: Any = compressor("llama", pooling=POOLING, block_size=8).encoder
        first = model.stock.layers[0]
    else:
        model = encoder(**SETTINGS[name])
        first = model.layers[0]
    batch = ragged(LENGTHS, width=64)
    batch["input_ids"] %= 70
    whole = _gradients(model, batch)
    monkeypatch.setattr(streaming, "PIECE_TOKENS", 16)
    sizes: list[int] = []
    first.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0].flatten(0, -2))))
    with streaming.cutting("always"):
        parts = _gradients(model, batch)
    num_pieces = len(list(_layout(getattr(model.config, "block_size", 8)).pieces(16)))
    assert len(sizes) == 2 * num_pieces > 2
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=2e-6, rtol=0, msg=key)


def _gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    encoded = model(**batch).last_hidden_state
    (encoded * torch.linspace(-1, 1, encoded.shape[-1])).mean().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def _layout(block: int | None = 8) -> Layout:
    return Layout(LENGTHS, block, torch.device("cpu"))


def _count_calls(module: Any) -> list[int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def _count_and_stream(model: Any, batch: dict[str, torch.Tensor]) -> list[int]:
    """Pieces that its second layer is called with."""
    calls = _count_calls(model.layers[1])
    with torch.no_grad():
        model(**batch)
    return calls


def _count_and_run(model: Any, batch: dict[str, torch.Tensor]) -> list[int]:
    calls = _count_calls(model.layers[0])
    model(**batch)
    return calls

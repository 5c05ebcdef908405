"""Staggered blocks: which tokens see one another, at the edges of documents of any length, and what is not touched."""

from itertools import accumulate
from typing import Any

import pytest
import torch

from tests.unit.model.test_layout import encoder, ragged
from tests.unit.model.test_model import RATIOS
from transpooler.model.architecture import Architecture, PoolingStage
from transpooler.model.config import TranspoolerConfig
from transpooler.model.layout import Layout
from transpooler.trainer.estimate.flops import document_work

STAGGERED: dict[str, Any] = {"stagger_blocks": True, "positions": "rotary", "norm": "pre"}


def same_block(length: int, block: int, shift: int) -> torch.Tensor:
    """bool (n, n): tokens that see one another where borders lie `shift` tokens before the multiples of `block`."""
    row = (torch.arange(length) + shift) // block
    return row[:, None] == row


@pytest.mark.parametrize("block", [8, 7, 2])
@pytest.mark.parametrize("lengths", [(40, 25, 3), (21, 20, 5, 4, 1), (8, 7), (6, 5), (4,), (12,), (16, 8)])
@pytest.mark.parametrize("num_layers", [2, 3])
def test_what_a_token_reads_is_what_its_blocks_hold(block, lengths, num_layers):
    """Whether output i depends on input j, against the product of the layers' own maps."""
    model = encoder(**STAGGERED, encoder_layers=num_layers, block_size=block)
    batch = ragged(lengths, width=max(lengths))
    embedded = model.embed_tokens(batch["input_ids"]).detach().requires_grad_()
    out = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).last_hidden_state
    for row, length in enumerate(lengths):
        seen = torch.eye(length)
        for layer in range(num_layers):
            seen = same_block(length, block, block // 2 if layer % 2 else 0).float() @ seen
        for token in range(length):
            weights = torch.randn(32, generator=torch.Generator().manual_seed(token))
            (grad,) = torch.autograd.grad(out[row, token] @ weights, embedded, retain_graph=True)
            assert torch.equal(grad[row, :length].abs().sum(1) > 0, seen[token] > 0), (row, token)
            assert not grad[row, length:].any()
            assert not grad[:row].any()
            assert not grad[row + 1 :].any()


@pytest.mark.parametrize(
    ("block", "sizes"), [(8, (4, 8, 8, 1)), (8, (4, 2)), (8, (4, 4)), (8, (3,)), (7, (4, 7, 2)), (7, (4, 2))]
)
def test_a_second_layer_computes_each_of_its_blocks_alone(block, sizes):
    model = encoder(**STAGGERED, block_size=block)
    batch = ragged((sum(sizes),), width=sum(sizes))
    calls: list[Any] = []
    model.layers[1].register_forward_hook(lambda _, args, result: calls.append((args, result[0])))
    model(**batch)
    (x_PD, _, _, cos_sin, _), made = calls[0]
    for length, end in zip(sizes, accumulate(sizes), strict=True):
        tokens = slice(end - length, end)
        alone = Layout([length], length, x_PD.device)
        own = tuple(part[tokens] for part in cos_sin)
        out, _ = model.layers[1].forward(x_PD[tokens], alone, None, own, False)
        torch.testing.assert_close(made[tokens], out, atol=1e-5, rtol=1e-4)


def test_compiled_it_computes_the_same_around_the_size_of_a_block():
    """tests/numerics/test_model_compile.py compiles longer ones."""
    model = encoder(**STAGGERED, pooling=RATIOS)
    for lengths in ((13, 6, 3), (6, 5, 2)):
        batch = ragged(lengths, width=max(lengths))
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(**batch)
        plain = model(**batch)
        width = plain.last_hidden_state.shape[1]
        torch.testing.assert_close(compiled.last_hidden_state[:, :width], plain.last_hidden_state, atol=1e-5, rtol=1e-5)
        mask = plain.attention_mask > 0
        assert torch.equal(compiled.positions[:, :width][mask], plain.positions[mask])


def test_attentions_are_over_the_places_of_a_tokens_own_block():
    model = encoder(**STAGGERED)
    batch = ragged((21, 9), width=21)
    even, odd = model(**batch, output_attentions=True).attentions
    assert even.shape == odd.shape == (2, 2, 21, 8)
    for row, length in ((0, 21), (1, 9)):
        torch.testing.assert_close(odd[row, :, :length].sum(2), torch.ones(2, length))
    assert not odd[:, :, :4, :4].any()  # a first block's first half is empty
    assert odd[:, :, :4, 4:].all()
    assert odd[0, :, 4:20].all()
    assert not odd[0, :, 20, 1:].any()
    plain = model(**batch).last_hidden_state
    torch.testing.assert_close(model(**batch, output_attentions=True).last_hidden_state, plain, atol=1e-5, rtol=1e-4)


def test_a_model_without_borders_is_as_it_was():
    batch = ragged((4, 3), width=4)  # within half a block
    one, other = (encoder(**STAGGERED | {"stagger_blocks": stagger}) for stagger in (True, False))
    assert torch.equal(one(**batch).last_hidden_state, other(**batch).last_hidden_state)
    longer = ragged((21, 9), width=21)
    assert not torch.allclose(one(**longer).last_hidden_state, other(**longer).last_hidden_state, atol=1e-3)


@pytest.mark.parametrize("block", [None, 1])
def test_blocks_that_have_no_half_are_refused(block):
    with pytest.raises(ValueError, match=f"stagger_blocks is true, but block_size is {block}; needs blocks of"):
        TranspoolerConfig(stagger_blocks=True, block_size=block)


def test_work_counts_the_halves_at_the_edges():
    """Pairs of the second of two layers: 256 + 2 · 512 + 220 tokens squared in place of 2 · 512 + 476."""
    plain, staggered = (
        Architecture(
            encoder_layers=2, block_size=512, stagger_blocks=stagger, pooling=(PoolingStage(after_layer=2, length=64),)
        )
        for stagger in (False, True)
    )
    more = document_work(staggered, 100, 1500, 10).forward - document_work(plain, 100, 1500, 10).forward
    assert more == 4 * 512 * ((256**2 + 2 * 512**2 + 220**2) - (2 * 512**2 + 476**2))

"""Noise of the scores: Gumbel's, the same for a document wherever and whenever it is read, in training alone."""

import math
from typing import Any

import pytest
import torch

from tests.unit.model.compressor.test_compressor import POOLING, compressor
from tests.unit.model.test_layout import ragged
from tests.unit.model.test_model import FIXED, LENGTHS, build
from transpooler.model.ops.exploration import document_keys, gumbel_noise
from transpooler.model.ops.operators import OPERATORS
from transpooler.trainer.config import load_config
from transpooler.trainer.step import exploration_of_step

SCORED = [name for name, operator in OPERATORS.items() if operator.needs_scores]
DRAW = torch.tensor(7)
OPTIONS: dict[str, Any] = {"pooling": FIXED, "norm": "pre", "positions": "rotary", "pooling_norm": "before"}


def mixed(x: int) -> int:
    """SplitMix64's finaliser in Python's integers, as Steele et al. 2014 print it."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_the_noise_is_that_of_the_formula():
    ids = [5, 9, 2]
    golden = 0x9E3779B97F4A7C15
    key = sum(mixed((token + golden * place) % 2**64) for place, token in enumerate(ids, 1)) % 2**64
    padded = torch.tensor([[*ids, 1, 1]])
    assert document_keys(padded, torch.arange(5)[None], torch.arange(5)[None] < 3).item() % 2**64 == key
    start = mixed(mixed(key ^ 7) ^ 4)
    uniforms = [((mixed((start + golden * place) % 2**64) >> 12) + 0.5) / 2**52 for place in (1, 2, 3)]
    expected = [-math.log(-math.log(uniform)) - 0.5772156649015329 for uniform in uniforms]
    assert (
        gumbel_noise(document_keys(padded[:, :3], torch.arange(3)[None], torch.ones(1, 3).bool()), 3, 4, DRAW)[
            0
        ].tolist()
        == expected
    )


def test_the_noise_is_gumbels_and_no_two_are_alike():
    ids = torch.randint(6, 300, (64, 20), generator=torch.Generator().manual_seed(0))
    keys = document_keys(ids, torch.arange(ids.shape[1]), torch.ones_like(ids).bool())
    noise = gumbel_noise(keys, 1000, 1, DRAW)
    assert noise.unique().numel() == 64_000
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    for quantile in (0.01, 0.5, 0.99):
        share = (noise < -math.log(-math.log(quantile)) - 0.5772156649015329).double().mean().item()
        assert share == pytest.approx(quantile, abs=0.006)
    others = (
        *(gumbel_noise(keys, 1000, 2, DRAW), gumbel_noise(keys, 1000, 1, torch.tensor(8))),
        *(noise.roll(1, 0), noise.roll(1, 1)),
    )
    for other in others:
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1].item()) < 0.02


@pytest.mark.parametrize("operator", SCORED)
def test_at_0_and_in_evaluation_nothing_changes(operator):
    stages = [{**stage, "operator": operator} for stage in FIXED]
    batch = ragged(LENGTHS, width=64)
    plain, noisy = build(pooling=stages), build(pooling=stages, exploration_noise=1.0)
    noisy.explore(7)
    expected = plain(**batch, labels=batch["input_ids"][:, :5]).logits
    assert torch.equal(noisy(**batch, labels=batch["input_ids"][:, :5]).logits, expected)
    explored = noisy.train()(**batch, labels=batch["input_ids"][:, :5]).logits
    assert torch.equal(plain.train()(**batch, labels=batch["input_ids"][:, :5]).logits, expected)
    assert not torch.allclose(explored[0], expected[0], atol=1e-3)
    if operator != "iterative_softmax":  # which always averages; of three tokens the others drop none
        torch.testing.assert_close(explored[2], expected[2])
    explored.sum().backward()
    grads = [part.grad for name, part in noisy.named_parameters() if name.endswith("scorer.weight")]
    assert all(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize("kind", ["seq2seq", "compressor"])
def test_a_document_has_its_noise_in_every_batch_and_a_draw_its_own(kind):
    model: Any = build(**OPTIONS, exploration_noise=1.0)
    if kind == "compressor":
        model = compressor("llama", pooling=POOLING, block_size=8, exploration_noise=1.0)
    model.train()
    encoder, batch = model.get_encoder() if kind == "seq2seq" else model.encoder, ragged(LENGTHS, width=64)
    batch["input_ids"] %= 99

    def positions(draw: int, side: str = "right", rows: slice = slice(None), width: int = 64) -> torch.Tensor:
        model.explore(draw)
        ids, mask = (batch[name][rows, :width] for name in ("input_ids", "attention_mask"))
        if side == "left":
            ids = torch.stack([row.roll(64 - length) for row, length in zip(ids, LENGTHS, strict=True)])
            mask = mask.flip(1)
        return encoder(ids, mask).positions

    first = positions(7)
    assert torch.equal(positions(7), first)
    assert torch.equal(positions(7, side="left"), first)
    for row, length in enumerate(LENGTHS):
        alone = positions(7, rows=slice(row, row + 1), width=length)
        assert torch.equal(alone[0], first[row, : alone.shape[1]])
    assert not torch.equal(positions(8), first)


def test_without_a_draw_the_noise_follows_torch_as_dropout_does():
    model, batch = build(**OPTIONS, exploration_noise=1.0).train(), ragged((40,), width=40)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model.get_encoder()(**batch).positions)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("seeded", [True, False])
def test_what_is_computed_again_or_compiled_draws_the_same(seeded):
    model, batch = build(**OPTIONS, exploration_noise=1.0).train(), ragged(LENGTHS, width=64)
    if seeded:
        model.explore(7)
    labels = batch["input_ids"][:, :5]
    parameters = list(model.parameters())
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(model(**batch, labels=labels).loss, parameters))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
    if seeded:
        encoder = model.get_encoder()
        encoder.gradient_checkpointing_disable()
        torch._dynamo.reset()  # other tests compile encoders, too
        compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
        for draw in (7, 8, 9):
            model.explore(draw)
            kept = encoder(**batch)
            width = kept.positions.shape[1]
            with torch._dynamo.config.patch(error_on_recompile=True):  # a step has no graph of its own
                assert torch.equal(compiled(**batch).positions[:, :width], kept.positions)


def test_compilers_take_the_noise_as_it_is():
    ids = torch.randint(6, 50_000, (3, 777), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(777) < torch.tensor([777, 500, 3])[:, None]
    places = torch.arange(ids.shape[1]).expand_as(ids)
    torch.library.opcheck(document_keys, (ids, places, mask), test_utils=("test_schema", "test_faketensor"))
    given = (document_keys(ids, places, mask), 777, 3, DRAW)
    torch.library.opcheck(gumbel_noise, given, test_utils=("test_schema", "test_faketensor"))


def test_embeddings_have_no_document_to_draw_from():
    model, batch = build(**OPTIONS, exploration_noise=1.0), ragged(LENGTHS, width=64)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    assert model.get_encoder()(inputs_embeds=embedded).positions is not None
    with pytest.raises(ValueError, match="inputs_embeds: exploration_noise is drawn from a document's ids"):
        model.train().get_encoder()(inputs_embeds=embedded)


def test_each_step_has_a_draw_of_its_own_from_seed_and_step():
    one, other = (load_config([], [f"seed={seed}"]) for seed in (0, 1))
    drawn = [exploration_of_step(config, step) for config in (one, other) for step in range(50)]
    assert len(set(drawn)) == 100
    assert drawn[:50] == [exploration_of_step(one, step) for step in range(50)]

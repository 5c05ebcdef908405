"""Pooling by spans against a plain reading of what it says."""

from typing import Any

import pytest
import torch

from transpooler.model.ops.schedule import SPAN_OPERATORS, PoolingStage, schedule_problems
from transpooler.model.pooler import Pooler

LENGTHS = (64, 50, 17, 16, 9, 3, 1)
BUDGETS = ({"length": 8}, {"length": 16}, {"ratio": 0.25}, {"ratio": 0.125})


def _batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(len(LENGTHS), max(LENGTHS), 6, generator=generator)
    return x, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def _pooler(operator: str, **stage: Any) -> Any:
    torch.manual_seed(1)
    pooler: Any = Pooler(PoolingStage(after_layer=1, operator=operator, span=4, **stage), 6, base=1e30)
    if pooler.scorer is not None:
        torch.nn.init.normal_(pooler.scorer.weight, std=3)
    return pooler.eval()


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("operator", SPAN_OPERATORS)
def test_whole_spans_are_kept_in_order_and_as_many_as_the_stage_says(operator, budget):
    x, mask = _batch(torch.Generator().manual_seed(0))
    pooler = _pooler(operator, **budget)
    pooled = pooler(x, mask)
    for row, length in enumerate(LENGTHS):
        count = pooler.stage.slots(length)
        assert pooled.mask[row].tolist() == [True] * count + [False] * (pooled.mask.shape[1] - count)
        assert int(pooler.stage.slots_of_each(torch.tensor([length]))) == count
        kept = pooled.positions[row, :count].tolist()
        assert kept == sorted(set(kept))
        assert kept[-1] < length
        if count == length:
            assert kept == list(range(length))
        else:
            assert count % 4 == 0
            assert all(kept[at : at + 4] == list(range(kept[at], kept[at] + 4)) for at in range(0, count, 4))
            assert all(first % 4 == 0 for first in kept[::4])
        torch.testing.assert_close(pooled.weights[row].sum(), torch.tensor(float(count)), atol=1e-3, rtol=0)


def test_the_spans_with_the_greatest_mean_logits_are_kept():
    x, mask = _batch(torch.Generator().manual_seed(0))
    pooler = _pooler("hard", length=8)
    pooled = pooler(x, mask)
    logits = pooler.scorer(x).squeeze(-1)
    best = logits[0].view(16, 4).sum(1).topk(2).indices.sort().values
    assert pooled.positions[0].tolist() == [4 * int(span) + place for span in best for place in range(4)]
    torch.testing.assert_close(pooled.embeddings[0], x[0, pooled.positions[0]])


@pytest.mark.parametrize("operator", SPAN_OPERATORS)
def test_a_document_does_not_depend_on_its_batch(operator):
    x, mask = _batch(torch.Generator().manual_seed(0))
    pooler = _pooler(operator, ratio=0.25)
    together = pooler(x, mask)
    for row, length in enumerate(LENGTHS):
        alone = pooler(x[row : row + 1, :length], mask[row : row + 1, :length])
        count = pooler.stage.slots(length)
        torch.testing.assert_close(together.embeddings[row, :count], alone.embeddings[0, :count])


@pytest.mark.parametrize("operator", ["successive_halving", "threshold", "hard"])
def test_every_token_of_a_span_teaches_the_scorer(operator):
    x, mask = _batch(torch.Generator().manual_seed(0))
    pooler = _pooler(operator, ratio=0.25).train()
    pooler.base = 20.0
    x.requires_grad_()
    pooled = pooler(x, mask)
    (pooled.embeddings * torch.randn(pooled.embeddings.shape)).sum().backward()
    assert pooler.scorer.weight.grad.abs().sum() > 0
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad[~mask] == 0).all()


def test_spans_are_as_decided_as_tokens_are():
    """Logits around 0.7 with a spread of 1.3, as of a scorer that has not learned: winners stand out all the same."""
    scores = (0.7 + 1.3 * torch.randn(1, 1024, generator=torch.Generator().manual_seed(0))).sigmoid()
    mask = torch.ones(1, 1024, dtype=torch.bool)
    for span in (1, 16):
        stage = PoolingStage(after_layer=1, ratio=0.125, span=span)
        plan = Pooler(stage, 1, base=20.0)._pool(torch.empty(1, 1024, 0), scores, mask)
        most = torch.zeros(128).scatter_reduce(0, plan.groups[0].clamp(min=0), plan.weights[0], "amax")
        assert most.mean() > 0.75


def test_noise_moves_whole_spans():
    x, mask = _batch(torch.Generator().manual_seed(0))
    pooler = _pooler("hard", length=8).train()
    pooler.exploration, pooler.draw = 100.0, torch.tensor(5)
    keys = torch.arange(len(LENGTHS))
    noisy = pooler(x, mask, None, keys)
    assert not torch.equal(noisy.positions[0], pooler.eval()(x, mask).positions[0])
    assert all(int(first) % 4 == 0 for first in noisy.positions[0, ::4])


@pytest.mark.parametrize(
    ("stage", "key", "message"),
    [
        ({"length": 10, "span": 4}, "length", "is 10; must be a multiple of span = 4"),
        ({"length": 8, "span": 0}, "span", "is 0; must be at least 1"),
        ({"ratio": 0.5, "span": 2, "operator": "strided_mean"}, "span", "is 2, but strided_mean keeps no tokens;"),
    ],
)
def test_spans_that_cannot_be_are_named(stage, key, message):
    ((found, said),) = schedule_problems([PoolingStage(after_layer=1, **stage)], first=1, last=1)
    assert found == f"pooling[0].{key}"
    assert said.startswith(message)

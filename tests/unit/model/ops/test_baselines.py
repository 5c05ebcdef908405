"""The baseline operators: values by hand, gradients, padding, independence of the batch."""

import pytest
import torch

from transpooler.model.ops import baselines
from transpooler.model.ops.threshold import threshold

OPERATORS = [
    *(baselines.hard, baselines.random, baselines.strided, baselines.strided_mean, baselines.weighted_mean),
    *(baselines.iterative_softmax, threshold),
]
EMBEDDINGS = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 1.0], [4.0, 0.0], [5.0, 1.0]]])
SCORES = torch.tensor([[0.2, 0.9, 0.4, 0.7, 0.1]])


def _inputs(batch: int = 3, num_tokens: int = 20):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(batch, num_tokens, 4, generator=generator, dtype=torch.float64)
    scores = torch.rand(batch, num_tokens, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, num_tokens, generator=generator) >= 0.3
    return embeddings.requires_grad_(), scores.requires_grad_(), mask


def test_hard_by_hand():
    result = baselines.hard(EMBEDDINGS, SCORES, 2)
    assert result.embeddings.tolist() == [[[2.0, 0.0], [4.0, 0.0]]]
    assert result.positions.tolist() == [[1, 3]]
    assert result.scores[0].tolist() == pytest.approx([0.9, 0.7])
    assert result.groups.tolist() == [[-1, 0, -1, 1, -1]]
    assert result.weights.tolist() == [[0, 1, 0, 1, 0]]
    best_first = baselines.hard(EMBEDDINGS, SCORES.flip(1), 2, keep_order=False)
    assert best_first.positions.tolist() == [[3, 1]]


def test_the_gradient_of_hard_reaches_its_scores():
    scores = SCORES.clone().requires_grad_()
    grad = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    (of_scores,) = torch.autograd.grad(baselines.hard(EMBEDDINGS, scores, 2).embeddings, scores, grad)
    assert of_scores.tolist() == [[0, 2, 0, 2, 0]]  # <e, g> of the chosen


@pytest.mark.parametrize("operator", [baselines.hard, baselines.random, baselines.strided, threshold])
def test_kept_tokens_pass_unchanged_in_every_dtype(operator):
    embeddings, scores, mask = (part.detach() for part in _inputs())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        given = embeddings.to(dtype)
        result = operator(given, scores.float(), 5, mask_BN=mask)
        expected = given.gather(1, result.positions[..., None].expand(-1, -1, 4))
        assert torch.equal(result.embeddings, torch.where(result.mask[..., None], expected, 0))
        assert result.weights.dtype == torch.float32


def test_strided_mean_by_hand():
    # Ranks 0..4 to slots 0, 0, 0, 1, 1.
    result = baselines.strided_mean(EMBEDDINGS, None, 2)
    assert result.groups.tolist() == [[0, 0, 0, 1, 1]]
    torch.testing.assert_close(result.embeddings, torch.tensor([[[2.0, 1 / 3], [4.5, 0.5]]]))
    torch.testing.assert_close(result.weights, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.5, 0.5]]))
    assert result.positions.tolist() == [[0, 3]]
    masked = baselines.strided_mean(EMBEDDINGS, None, 2, mask_BN=torch.tensor([[False, True, True, False, True]]))
    torch.testing.assert_close(masked.embeddings, torch.tensor([[[2.5, 0.5], [5.0, 1.0]]]))
    assert masked.positions.tolist() == [[1, 4]]


def test_strided_by_hand():
    assert baselines.strided(EMBEDDINGS, None, 2).positions.tolist() == [[0, 3]]
    assert baselines.strided(EMBEDDINGS, None, 4).positions.tolist() == [[0, 2, 3, 4]]
    masked = baselines.strided(EMBEDDINGS, None, 2, mask_BN=torch.tensor([[False, True, True, False, True]]))
    assert masked.positions.tolist() == [[1, 4]]
    assert masked.embeddings.tolist() == [[[2.0, 0.0], [5.0, 1.0]]]
    short = baselines.strided(EMBEDDINGS, None, 9)
    assert short.groups.tolist() == [[0, 1, 2, 3, 4]]


def test_weighted_mean_by_hand():
    """Weights within each run are the softmax of the scorer, and its gradient is the softmax's."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    result = baselines.weighted_mean(EMBEDDINGS.double(), logits.sigmoid(), 2)
    assert result.groups.tolist() == [[0, 0, 0, 1, 1]]
    first, second = logits[0, :3].softmax(0), logits[0, 3:].softmax(0)
    torch.testing.assert_close(result.weights[0], torch.cat([first, second]))
    pooled = torch.stack([first @ EMBEDDINGS[0, :3].double(), second @ EMBEDDINGS[0, 3:].double()])
    torch.testing.assert_close(result.embeddings[0], pooled)
    assert result.positions.tolist() == [[1, 3]]  # the heaviest, of equals the first
    grads = (torch.autograd.grad(each.square().sum(), logits)[0] for each in (result.embeddings, pooled))
    torch.testing.assert_close(*grads)
    far = baselines.weighted_mean(EMBEDDINGS, torch.tensor([[0.0, 1.0, 1.0, 1.5, -1.0]]), 2)
    assert far.embeddings.isfinite().all()


def test_iterative_softmax_by_hand():
    result = baselines.iterative_softmax(torch.eye(2)[None], torch.tensor([[0.6, 0.5]]), 2)
    first = torch.tensor([6.0, 5.0]).softmax(0)  # scores / 0.1
    second = (torch.tensor([6.0, 5.0]) + torch.log(1 - first)).softmax(0)
    torch.testing.assert_close(result.embeddings[0], torch.stack([first, second]))
    assert result.mask.all()


def test_random_draws_real_tokens_evenly():
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False, True, True]])
    drawn = torch.zeros(5)
    for _ in range(2000):
        drawn[baselines.random(EMBEDDINGS, None, 2, mask_BN=mask, training=True).positions[0]] += 1
    assert drawn[2] == 0
    assert (drawn[mask[0]] / 2000 - 0.5).abs().max() < 0.06  # over five standard deviations
    first, second = (baselines.random(EMBEDDINGS, None, 2, mask_BN=mask) for _ in range(2))
    assert torch.equal(first.positions, second.positions)


@pytest.mark.parametrize("operator", OPERATORS)
def test_padding_takes_no_part(operator):
    embeddings, scores, mask = _inputs()
    plain = operator(embeddings, scores, 5, mask_BN=mask)
    other = torch.where(mask[..., None], embeddings, 1e6)
    poisoned = operator(other, torch.where(mask, scores, 1.0), 5, mask_BN=mask)
    assert torch.equal(plain.embeddings, poisoned.embeddings)
    assert (plain.groups[~mask] == -1).all()
    assert not plain.weights[~mask].any()
    grad = torch.autograd.grad(plain.embeddings.sum(), embeddings)[0]
    assert grad[mask].any()
    assert not grad[~mask].any()


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_document_does_not_depend_on_its_batch(operator):
    embeddings, scores, mask = _inputs()
    k = torch.tensor([2, 5, 3])
    together = operator(embeddings, scores, k, mask_BN=mask, slots=6)
    assert together.embeddings.shape == (3, 6, 4)
    assert together.mask.sum(1).tolist() == k.tolist()
    assert not together.embeddings[~together.mask].any()
    for row in range(3):
        one = slice(row, row + 1)
        alone = operator(embeddings[one], scores[one], int(k[row]), mask_BN=mask[one])
        torch.testing.assert_close(together.embeddings[row, : k[row]], alone.embeddings[0])
        assert torch.equal(together.positions[row, : k[row]], alone.positions[0])
        assert torch.equal(together.groups[one], alone.groups)


@pytest.mark.parametrize("operator", OPERATORS)
def test_few_tokens_and_none(operator):
    embeddings, scores, _ = _inputs(batch=2, num_tokens=6)
    mask = torch.tensor([[True, True, True, False, False, False], [False] * 6])
    result = operator(embeddings, scores, 4, mask_BN=mask)
    assert result.mask.tolist() == [[True, True, True, False], [False] * 4]
    assert not result.embeddings[1].any()
    if operator is not baselines.iterative_softmax:  # which always averages
        torch.testing.assert_close(result.embeddings[0, :3], embeddings[0, :3])


@pytest.mark.parametrize("operator", OPERATORS)
def test_dtype_is_kept_under_autocast(operator):
    embeddings, scores, mask = (part.detach() for part in _inputs())
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = operator(embeddings.to(dtype), scores.float(), 5, mask_BN=mask)
        assert result.embeddings.dtype == dtype
        assert result.scores.dtype == torch.float32


def test_gradients_in_float64():
    embeddings, scores, mask = _inputs(batch=2, num_tokens=9)

    for soft in (baselines.iterative_softmax, baselines.weighted_mean):
        assert torch.autograd.gradcheck(lambda e, s, f=soft: f(e, s, 3, mask_BN=mask).embeddings, (embeddings, scores))
    for operator in OPERATORS:
        assert torch.autograd.gradcheck(
            lambda e, f=operator: f(e, scores.detach(), 3, mask_BN=mask).embeddings, embeddings
        )

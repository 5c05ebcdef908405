"""soft_topk against the step-by-step reference, and as a citizen of torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transpooler.model.ops.soft_topk import soft_topk
from transpooler.model.ops.soft_topk.ops import group_sum_op, tournament_op

TOLERANCE = 1e-11


def _inputs(seed: int, num_tokens: int, ties: bool = False, masked: float = 0.2):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(2, num_tokens, 3, dtype=torch.float64, generator=generator)
    scores = torch.rand(2, num_tokens, dtype=torch.float64, generator=generator)
    if ties:
        scores = ((scores * 4).round() + 1) / 5
    mask = torch.rand(2, num_tokens, generator=generator) >= masked
    return embeddings.requires_grad_(), scores.requires_grad_(), mask


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    num_tokens=st.integers(1, 40),
    k=st.integers(1, 12),
    ties=st.booleans(),
    keep_order=st.booleans(),
)
def test_equals_the_reference(backend, seed, num_tokens, k, ties, keep_order):
    embeddings, scores, mask = _inputs(seed, num_tokens, ties)
    fast, slow = (
        soft_topk(embeddings, scores, k, mask_BN=mask, keep_order=keep_order, backend=name)
        for name in (backend, "reference")
    )
    for name in fast._fields:
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), atol=TOLERANCE, rtol=0, msg=name)
    if not slow.weights.requires_grad:  # identity, or a batch that is all padding
        return
    grads = [torch.randn_like(part) for part in (fast.embeddings, fast.scores, fast.weights)]
    fast_grads, slow_grads = (
        torch.autograd.grad((result.embeddings, result.scores, result.weights), (embeddings, scores), grads)
        for result in (fast, slow)
    )
    for a, b in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
        assert not a[~mask].any()


def test_a_hand_computed_pair():
    # Scores 1 and 1/2 meet: p = sigmoid(20 - sqrt(20)) for base 20.
    embeddings = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    result = soft_topk(embeddings, torch.tensor([[1.0, 0.5]], dtype=torch.float64), 1)
    p = 1 / (1 + torch.exp(torch.tensor(20**0.5 - 20, dtype=torch.float64)))
    assert result.embeddings.item() == pytest.approx(p.item(), abs=1e-15)
    assert result.weights[0].tolist() == pytest.approx([p.item(), 1 - p.item()], abs=1e-15)


def test_the_best_and_the_worst_meet():
    scores = torch.tensor([[0.2, 0.9, 0.4, 0.7]])
    result = soft_topk(torch.zeros(1, 4, 2), scores, 2)
    assert result.positions.tolist() == [[1, 3]]
    assert result.groups.tolist() == [[0, 0, 1, 1]]


def test_padding_changes_nothing():
    embeddings, scores, _ = _inputs(3, 30)
    short = soft_topk(embeddings[:1, :20], scores[:1, :20], 6)
    mask = torch.arange(30).expand(2, 30) < torch.tensor([[20], [30]])
    poison = torch.where(mask, scores, torch.nan)
    padded = soft_topk(embeddings, poison, 6, mask_BN=mask)
    assert torch.equal(padded.embeddings[0], short.embeddings[0])
    assert not padded.weights[0, 20:].any()
    assert (padded.groups[0, 20:] == -1).all()


def test_a_k_for_each_document_equals_documents_alone():
    embeddings, scores, _ = _inputs(4, 33)
    k = torch.tensor([3, 7])
    together = soft_topk(embeddings, scores, k, slots=9)
    assert together.mask.sum(1).tolist() == [3, 7]
    for row in range(2):
        alone = soft_topk(embeddings[row : row + 1], scores[row : row + 1], int(k[row]))
        assert torch.equal(together.embeddings[row, : k[row]], alone.embeddings[0])
        assert torch.equal(together.positions[row, : k[row]], alone.positions[0])


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_gradcheck(backend):
    embeddings, scores, mask = _inputs(5, 21)

    def pooled(e, s):
        result = soft_topk(e, s, 5, mask_BN=mask, backend=backend)
        return result.embeddings, result.scores, result.weights

    assert torch.autograd.gradcheck(pooled, (embeddings, scores))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_opcheck(backend):
    embeddings, scores, mask = _inputs(6, 33)
    k = torch.full((2, 1), 5)
    torch.library.opcheck(tournament_op, (scores, mask, k, 5, 3, 20.0, backend))
    plan = soft_topk(embeddings, scores, 5, mask_BN=mask)
    torch.library.opcheck(group_sum_op, (embeddings, plan.weights.detach().requires_grad_(), plan.groups, 5, backend))


def test_low_precision_keeps_dtypes_and_order():
    embeddings, scores, mask = _inputs(7, 32)
    low = soft_topk(embeddings.bfloat16(), scores.float(), 4, mask_BN=mask)
    high = soft_topk(embeddings, scores, 4, mask_BN=mask)
    assert low.embeddings.dtype == torch.bfloat16
    assert low.weights.dtype == low.scores.dtype == torch.float32
    assert torch.equal(low.positions, high.positions)
    torch.testing.assert_close(low.embeddings.double(), high.embeddings, atol=0.02, rtol=0.02)

"""What soft_topk promises whatever the arguments' layout: strides, paddings, few tokens, modes of differentiation."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from transpooler.model.ops.baselines import strided_mean
from transpooler.model.ops.soft_topk import soft_topk
from transpooler.model.ops.soft_topk.ops import group_sum_backward_op, tournament_backward_op, tournament_op

BACKENDS = ["cpp", "torch", pytest.param("triton", marks=pytest.mark.skipif("torch.cuda.is_available()"))]


def given(tokens: int = 19, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(3, tokens, 8, generator=generator)
    return embeddings, torch.rand(3, tokens, generator=generator) * 0.9 + 0.05


def transposed(x: torch.Tensor) -> torch.Tensor:
    """The same values, columns first in memory."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_change_nothing(backend):
    embeddings, scores = given()
    results = []
    for change in (torch.clone, transposed):
        leaves = [change(embeddings).requires_grad_(), change(scores).requires_grad_()]
        pooled = soft_topk(
            leaves[0], leaves[1], 3, mask_BN=change(torch.arange(19).expand(3, -1) < 18), backend=backend
        )
        grads = torch.autograd.grad(pooled.embeddings.square().sum() + pooled.scores.sum(), leaves)
        results.append([*pooled, *grads])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(results[1][5].sum(1), torch.full((3,), 3.0))  # the weights of three slots


def test_fakes_promise_the_strides_that_kernels_give():
    embeddings, scores = given()
    scores, mask, k = transposed(scores), torch.ones(3, 19, dtype=torch.bool), torch.full((3, 1), 4)
    weights, pooled, groups, *_ = tournament_op(scores, mask, k, 4, 3, 20.0, "cpp")
    rest = (mask, k, 4, 3, 20.0, "cpp")
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(tournament_backward_op, (transposed(weights), pooled, scores, *rest), test_utils=checks)
    torch.library.opcheck(
        group_sum_backward_op,
        (torch.randn(3, 4, 8), transposed(embeddings), transposed(weights), transposed(groups), "cpp"),
        test_utils=checks,
    )


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
@pytest.mark.parametrize("keep_order", [True, False])
def test_a_document_that_fits_is_laid_out_as_one_that_does_not(backend, keep_order):
    """A column of padding more must change nothing, though N <= k on one side of it and N > k on the other."""
    embeddings, scores = given(4)
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 0]]).bool()
    fits = soft_topk(embeddings, scores, 4, mask_BN=mask, keep_order=keep_order, backend=backend)
    pad = torch.nn.functional.pad
    more = soft_topk(
        pad(embeddings, (0, 0, 0, 1), value=7.0), pad(scores, (0, 1), value=0.5), 4, mask_BN=pad(mask, (0, 1)),
        keep_order=keep_order, backend=backend,
    )  # fmt: skip
    for name in ("embeddings", "mask", "scores", "positions"):
        assert torch.equal(getattr(fits, name), getattr(more, name)), name
    assert torch.equal(fits.groups, more.groups[:, :4])
    assert torch.equal(fits.weights, more.weights[:, :4])


@pytest.mark.parametrize("k", [3, 30])
def test_forward_mode_is_right_or_refused_and_tensors_without_values_pass(k):
    embeddings, scores = given()

    def tangent(change, of, x):
        return torch.func.jvp(lambda x: of(x).embeddings, (x,), (change,))[1]

    change = torch.randn_like(embeddings)
    if k > embeddings.shape[1]:  # nothing is chosen
        assert torch.equal(tangent(change, lambda x: soft_topk(x, scores, k), embeddings), change)
    else:
        for pool in (lambda x: soft_topk(x, scores, k), lambda x: strided_mean(x, None, k)):
            with pytest.raises(NotImplementedError, match="forward-mode"):
                tangent(change, pool, embeddings)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            tangent(torch.ones_like(scores), lambda x: soft_topk(embeddings, x, k), scores)
    with FakeTensorMode():
        shape = soft_topk(torch.randn(2, 9, 4), torch.rand(2, 9), k).embeddings.shape
    assert shape == (2, min(k, 9), 4)


def test_too_few_rounds_are_refused():
    embeddings, scores = given()
    k = torch.tensor([2, 5, 19])
    soft_topk(embeddings, scores, k, slots=19, rounds=4)
    with pytest.raises(ValueError, match="rounds: 3; expected at least 4"):
        soft_topk(embeddings, scores, k, slots=19, rounds=3)

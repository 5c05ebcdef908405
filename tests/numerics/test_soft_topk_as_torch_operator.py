"""soft_topk under autocast, activation checkpointing, torch.compile; odd strides; any number of threads."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from transpooler.model.ops.soft_topk import ops, soft_topk

K = 5


def _inputs(
    batch: int = 3, num_tokens: int = 37, dim: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(batch, num_tokens, dim, generator=generator).to(dtype).requires_grad_()
    logits = torch.randn(batch, num_tokens, generator=generator).requires_grad_()
    mask = torch.rand(batch, num_tokens, generator=generator) >= 0.2
    return embeddings, logits, mask


def _pool(embeddings: Tensor, logits: Tensor, mask: Tensor, backend: str = "auto") -> Tensor:
    return soft_topk(embeddings, logits.sigmoid(), K, mask_BN=mask, backend=backend).embeddings


def _gradients(run: Callable[..., Tensor], embeddings: Tensor, logits: Tensor, mask: Tensor) -> list[Tensor]:
    embeddings.grad = logits.grad = None
    pooled = run(embeddings, logits, mask)
    (pooled.float() ** 2).sum().backward()
    assert embeddings.grad is not None
    assert logits.grad is not None
    return [pooled.detach(), embeddings.grad.clone(), logits.grad.clone()]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_autocast_changes_nothing(low, backend):
    for dtype in (torch.float32, low):
        inputs = _inputs(dtype=dtype)
        plain = _gradients(partial(_pool, backend=backend), *inputs)

        def autocast(embeddings: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=low):
                return _pool(embeddings, logits, mask, backend)

        for a, b in zip(plain, _gradients(autocast, *inputs), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_autocast_lifts_scores_of_the_bare_operator_to_float32():
    scores, mask, k = torch.rand(1, 16).bfloat16(), torch.ones(1, 16, dtype=torch.bool), torch.tensor([[4]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = ops.tournament_op(scores, mask, k, 4, 2, 20.0, "cpp")[0]
        assert ops.tournament_op(scores.double(), mask, k, 4, 2, 20.0, "cpp")[0].dtype == torch.float64
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_the_same_bits(reentrant):
    inputs = _inputs()
    plain = _gradients(_pool, *inputs)
    again = _gradients(lambda *a: checkpoint(_pool, *a, use_reentrant=reentrant), *inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_deepspeed_checkpointed_gradients_are_the_same_bits():
    from deepspeed.runtime.activation_checkpointing import checkpointing

    inputs = _inputs()
    plain = _gradients(_pool, *inputs)
    again = _gradients(lambda *a: checkpointing.checkpoint(_pool, *a), *inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(backend, dynamic):
    torch._dynamo.reset()
    inputs = _inputs()
    # fullgraph: a graph break is an error. aot_eager traces forward and backward and compiles no C++.
    compiled = torch.compile(partial(_pool, backend=backend), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    plain, traced = (_gradients(run, *inputs) for run in (partial(_pool, backend=backend), compiled))
    for a, b in zip(plain, traced, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_strides_do_not_matter(backend):
    embeddings, logits, mask = _inputs()
    scores = logits.detach().sigmoid().requires_grad_()
    strided_embeddings = embeddings.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    strided_scores = torch.stack([scores.detach()] * 2, dim=2)[..., 0].requires_grad_()
    assert not strided_embeddings.is_contiguous()
    assert not strided_scores.is_contiguous()

    def run(*arguments):
        return soft_topk(arguments[0], arguments[1], K, mask_BN=arguments[2], backend=backend).embeddings

    plain = _gradients(run, embeddings, scores, mask)
    strided = _gradients(run, strided_embeddings, strided_scores, mask.t().contiguous().t())
    for a, b in zip(plain, strided, strict=True):
        torch.testing.assert_close(a, b)


def test_an_expanded_gradient():
    embeddings, logits, mask = _inputs()
    _pool(embeddings, logits, mask).sum().backward()  # the gradient of a sum has stride 0
    weights = soft_topk(embeddings, logits.sigmoid(), K, mask_BN=mask).weights
    torch.testing.assert_close(embeddings.grad, weights[..., None].expand_as(embeddings).detach())


def test_both_orders_of_summing_give_the_same_bits():
    """C++ sums by document where documents keep all threads busy, else by slot."""
    threads = torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        embeddings, logits, mask = _inputs(batch=2, num_tokens=300, dim=37, dtype=dtype)
        try:
            torch.set_num_threads(1)
            by_document = _pool(embeddings, logits, mask, "cpp")
            torch.set_num_threads(7)
            by_slot = _pool(embeddings, logits, mask, "cpp")
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(by_document, by_slot)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_have_the_same_bits_with_any_number_of_threads(dtype):
    """A thread's share may end at any token; 1,000 tokens of 3 documents are cut at many places."""
    draw = torch.Generator().manual_seed(0)
    embeddings, scores = torch.randn(3, 1000, 96, generator=draw).to(dtype), torch.rand(3, 1000, generator=draw)
    scores = scores if dtype != torch.float64 else scores.double()
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5, 7):
            torch.set_num_threads(number)
            leaves = embeddings.clone().requires_grad_(), scores.clone().requires_grad_()
            pooled = soft_topk(*leaves, 64, backend="cpp").embeddings
            found.append(torch.autograd.grad((pooled.float() * torch.arange(96.0)).sin().sum(), leaves))
    finally:
        torch.set_num_threads(threads)
    for gradients in found[1:]:
        assert all(map(torch.equal, gradients, found[0]))


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
@pytest.mark.parametrize("base", [1 + 1e-12, 1.001, 2, 1e20, 1e30])
def test_the_outermost_bases_have_finite_results_and_gradients(backend, base):
    uniform = torch.rand(2, 33, generator=torch.Generator().manual_seed(0))
    for scores in (uniform, torch.full((2, 33), 0.5), torch.tensor([1.0, 1e-38, 1 - 1e-7] * 11).repeat(2, 1)):
        leaves = torch.ones(2, 33, 8).cumsum(1).requires_grad_(), scores.requires_grad_()
        pooled = soft_topk(*leaves, 4, base=base, backend=backend).embeddings
        for each in (pooled, *torch.autograd.grad(pooled.square().sum(), leaves)):
            assert each.isfinite().all()


def test_large_gradients_past_the_caches():
    """Above 16 MiB the C++ backward stores past the caches; its bytes per row may not divide by 16."""
    for dim in (64, 67):
        embeddings = torch.randn(1, 70_000, dim, requires_grad=True)
        result = soft_topk(embeddings, torch.rand(1, 70_000) * 0.9 + 0.1, 1000, backend="cpp")
        grad = torch.randn_like(result.embeddings)
        (of_embeddings,) = torch.autograd.grad(result.embeddings, embeddings, grad)
        torch.testing.assert_close(of_embeddings[0], result.weights[0][:, None] * grad[0][result.groups[0]])


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
def test_no_documents_and_only_padding(backend):
    nothing = soft_topk(torch.zeros(0, 9, 3), torch.zeros(0, 9), 2, backend=backend)
    assert nothing.embeddings.shape == (0, 2, 3)
    assert nothing.groups.shape == (0, 9)
    embeddings, scores = torch.full((1, 9, 3), torch.nan, requires_grad=True), torch.full((1, 9), torch.nan)
    padding = soft_topk(embeddings, scores, 2, mask_BN=torch.zeros(1, 9, dtype=torch.bool), backend=backend)
    assert not padding.embeddings.any()
    assert not padding.mask.any()
    assert (padding.groups == -1).all()
    if backend != "reference":
        assert not torch.autograd.grad(padding.embeddings.sum(), embeddings)[0].any()


@pytest.mark.parametrize("backend", ["cpp", "torch", "triton"])
def test_opcheck_of_all_four_operators_in_float32(backend):
    """Schema, fake kernels, autograd, dynamic shapes; float64 is in test_model_soft_topk."""
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("with a GPU, tests/gpu runs the compiled kernels")
    embeddings, logits, mask = _inputs(batch=2, num_tokens=12, dim=4)
    scores = logits.detach().sigmoid().requires_grad_()
    settings = (torch.full((2, 1), K), K, 2, 20.0, backend)
    torch.library.opcheck(ops.tournament_op, (scores, mask, *settings))
    plan = soft_topk(embeddings, scores, K, mask_BN=mask)
    weights, grads = plan.weights.detach(), torch.ones(2, K)
    torch.library.opcheck(ops.tournament_backward_op, (weights, grads, scores.detach(), mask, *settings))
    torch.library.opcheck(ops.group_sum_op, (embeddings, weights.clone().requires_grad_(), plan.groups, K, backend))
    grad = torch.ones(2, K, 4)
    torch.library.opcheck(ops.group_sum_backward_op, (grad, embeddings.detach(), weights, plan.groups, backend))

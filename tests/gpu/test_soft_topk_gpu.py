"""The compiled Triton kernels on a CUDA device: right, deterministic, never waiting for the host. `make bench-gpu`."""

import pytest
import torch
from torch import Tensor

from transpooler.benchmarks.soft_topk.stepwise import stepwise_soft_topk
from transpooler.model.ops.soft_topk import argument_checks, soft_topk
from transpooler.model.ops.soft_topk.triton_backend import MAX_TOKENS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _inputs(
    batch: int, num_tokens: int, dim: int, *, masked: float = 0.0, ties: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(batch, num_tokens, dim, generator=generator)
    scores = torch.rand(batch, num_tokens, generator=generator).clamp(min=1e-4)
    if ties:
        scores = ((scores * 8).round() + 1) / 10
    mask = torch.rand(batch, num_tokens, generator=generator) >= masked
    return embeddings, scores, mask


def _run(embeddings, scores, mask, k: int, dtype: torch.dtype, device: str, backend: str, keep_order: bool = True):
    """All fields, and the gradients of embeddings and scores, on the CPU."""
    e = embeddings.to(device, dtype).requires_grad_()
    s = scores.to(device, torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    result = soft_topk(e, s, k, mask_BN=mask.to(device), keep_order=keep_order, backend=backend)
    outputs = (result.embeddings, result.scores, result.weights)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(part.shape, generator=generator).to(part) for part in outputs]
    named = dict(zip(result._fields, result, strict=True))
    named["grad of embeddings"], named["grad of scores"] = torch.autograd.grad(outputs, (e, s), grads)
    return {name: part.detach().cpu() for name, part in named.items()}


def _within_budget(fast: dict[str, Tensor], naive: dict[str, Tensor], exact: dict[str, Tensor], dtype) -> None:
    for name in ("mask", "positions", "groups"):
        assert torch.equal(fast[name], exact[name]), name
    for name in ("embeddings", "scores", "weights", "grad of embeddings", "grad of scores"):
        error, budget = ((part[name].double() - exact[name].double()).abs().max() for part in (fast, naive))
        of_embeddings = name in ("embeddings", "grad of embeddings")
        rounding = torch.finfo(dtype if of_embeddings else torch.float32).eps
        assert error <= 3 * budget + 8 * rounding * exact[name].double().abs().max(), name


@pytest.mark.parametrize("keep_order", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "k", "dim", "masked"),
    [(10, 3, 5, 0.0), (1000, 60, 33, 0.3), (1024, 64, 768, 0.0), (8192, 512, 64, 0.1), (300, 9, 16, 1.0)],
)
def test_equals_float64_within_the_budget(num_tokens, k, dim, masked, dtype, keep_order):
    inputs = _inputs(3, num_tokens, dim, masked=masked)
    exact = _run(*inputs, k, torch.float64, "cpu", "torch", keep_order)
    naive = _run(*inputs, k, dtype, "cuda", "torch", keep_order)
    _within_budget(_run(*inputs, k, dtype, "cuda", "triton", keep_order), naive, exact, dtype)


def test_equals_the_step_by_step_reference():
    inputs = _inputs(2, 128, 8)
    exact = _run(*inputs, 8, torch.float64, "cpu", "reference")
    fast = _run(*inputs, 8, torch.float32, "cuda", "triton")
    assert torch.equal(fast["groups"], exact["groups"])
    for name in ("embeddings", "scores", "grad of embeddings", "grad of scores"):
        torch.testing.assert_close(fast[name].double(), exact[name].double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_tokens", [64, 4096])
def test_ties_go_to_the_earlier_token(num_tokens):
    inputs = _inputs(4, num_tokens, 8, ties=True, masked=0.1)
    exact = _run(*inputs, 16, torch.float64, "cpu", "torch")
    naive = _run(*inputs, 16, torch.float32, "cuda", "torch")
    _within_budget(_run(*inputs, 16, torch.float32, "cuda", "triton"), naive, exact, torch.float32)


@pytest.mark.parametrize("num_tokens", [MAX_TOKENS, MAX_TOKENS + 1, 40_000])
def test_long_rows(num_tokens):
    inputs = _inputs(2, num_tokens, 16, masked=0.05)
    exact = _run(*inputs, 512, torch.float64, "cpu", "torch")
    naive = _run(*inputs, 512, torch.float32, "cuda", "torch")
    _within_budget(_run(*inputs, 512, torch.float32, "cuda", "triton"), naive, exact, torch.float32)


def test_the_same_bits_again_and_in_any_batch():
    embeddings, scores, mask = _inputs(5, 2000, 64, masked=0.2)
    first, again = (_run(embeddings, scores, mask, 100, torch.bfloat16, "cuda", "triton") for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    alone = soft_topk(embeddings[3:4].cuda(), scores[3:4].cuda(), 100, mask_BN=mask[3:4].cuda(), backend="triton")
    batch = soft_topk(embeddings.cuda(), scores.cuda(), 100, mask_BN=mask.cuda(), backend="triton")
    assert torch.equal(alone.embeddings[0], batch.embeddings[3])


def test_a_k_for_each_document():
    embeddings, scores, _ = (part.cuda() for part in _inputs(3, 500, 16))
    k = torch.tensor([3, 70, 120], device="cuda")
    fast, plain = (soft_topk(embeddings, scores, k, slots=120, backend=name) for name in ("triton", "torch"))
    assert torch.equal(fast.groups, plain.groups)
    torch.testing.assert_close(fast.embeddings, plain.embeddings)


@pytest.mark.parametrize("num_tokens", [2048, 20_000])
def test_the_host_never_waits(num_tokens, monkeypatch):
    monkeypatch.delenv(argument_checks.DEBUG, raising=False)
    embeddings, scores, mask = (part.cuda() for part in _inputs(2, num_tokens, 32))
    embeddings.requires_grad_(), scores.requires_grad_()
    soft_topk(embeddings, scores, 128, mask_BN=mask, backend="triton").embeddings.sum().backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        soft_topk(embeddings, scores, 128, mask_BN=mask, backend="triton").embeddings.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_replays_it():
    embeddings, scores, mask = (part.cuda() for part in _inputs(2, 1024, 32))
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        soft_topk(embeddings, scores, 64, mask_BN=mask, backend="triton")  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = soft_topk(embeddings, scores, 64, mask_BN=mask, backend="triton").embeddings
    other = _inputs(2, 1024, 32, seed=7)
    embeddings.copy_(other[0]), scores.copy_(other[1])
    graph.replay()
    torch.testing.assert_close(captured, soft_topk(embeddings, scores, 64, mask_BN=mask).embeddings)


def test_the_debug_flag_checks_scores(monkeypatch):
    monkeypatch.setenv(argument_checks.DEBUG, "1")
    with pytest.raises(ValueError, match=r"^scores: 2.0 at \[0, 0\]"):
        soft_topk(torch.rand(1, 8, 2, device="cuda"), torch.full((1, 8), 2.0, device="cuda"), 2)


def test_autocast_and_compile():
    embeddings, scores, _ = (part.cuda() for part in _inputs(2, 512, 64))
    plain = soft_topk(embeddings, scores, 32).embeddings
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(soft_topk(embeddings, scores, 32).embeddings, plain)
    compiled = torch.compile(lambda e, s: soft_topk(e, s, 32).embeddings, fullgraph=True)
    torch.testing.assert_close(compiled(embeddings, scores), plain)


def test_equals_the_steps_the_benchmark_measures_against():
    embeddings, scores, _ = (part.cuda() for part in _inputs(2, 4096, 64))
    torch.testing.assert_close(
        soft_topk(embeddings, scores, 256).embeddings, stepwise_soft_topk(embeddings, scores, 256)[0]
    )

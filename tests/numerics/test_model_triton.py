"""The Triton kernels: their logic in Triton's interpreter, their compilation for an H100 without one.

Compiled correctness and speed: tests/gpu and benchmarks.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transpooler.model.ops.soft_topk import soft_topk

pytest.importorskip("triton", reason="the triton package is not installed (it has no wheels for this platform)")
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, tests/gpu runs the kernels")
COMPILE = Path(__file__).with_name("compile_triton_kernels.py")


def _results(scores, embeddings, mask, backend, dtype, keep_order, k=9):
    """All fields of the result, then the gradients of embeddings and scores."""
    scores = scores.to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    embeddings = embeddings.to(dtype).requires_grad_()
    result = soft_topk(embeddings, scores, k, mask_BN=mask, keep_order=keep_order, backend=backend)
    outputs = (result.embeddings, result.scores, result.weights)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in outputs]
    named = dict(zip(result._fields, result, strict=True))
    named["grad of embeddings"], named["grad of scores"] = torch.autograd.grad(outputs, (embeddings, scores), grads)
    return named


@needs_interpreter
@pytest.mark.parametrize("keep_order", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "masked"), [(10, 0.0), (37, 0.2), (128, 0.0), (100, 0.95), (40, 1.0)])
def test_as_exact_as_plain_torch(num_tokens, masked, dtype, keep_order):
    generator = torch.Generator().manual_seed(num_tokens)
    embeddings = torch.randn(3, num_tokens, 33, generator=generator).to(dtype)
    scores = torch.rand(3, num_tokens, generator=generator)
    mask = torch.rand(3, num_tokens, generator=generator) >= masked
    exact, plain, fast = (
        _results(scores, embeddings, mask, backend, kind, keep_order)
        for backend, kind in (("torch", torch.float64), ("torch", dtype), ("triton", dtype))
    )
    for name in ("mask", "positions", "groups"):
        assert torch.equal(fast[name], exact[name]), name
    for name in ("embeddings", "scores", "weights", "grad of embeddings", "grad of scores"):
        error, budget = ((part[name].double() - exact[name]).abs().max() for part in (fast, plain))
        scale = exact[name].abs().max()
        assert error <= 3 * budget + 1e-6 * scale, name


@needs_interpreter
def test_ties_go_to_the_earlier_token():
    scores = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.7, 0.5]])
    result = soft_topk(torch.eye(8)[None], scores, 2, backend="triton")
    expected = soft_topk(torch.eye(8)[None], scores, 2, backend="reference")
    assert torch.equal(result.positions, expected.positions)
    assert torch.equal(result.groups, expected.groups)


@needs_interpreter
def test_a_k_for_each_document():
    generator = torch.Generator().manual_seed(2)
    embeddings, scores = torch.randn(3, 50, 4, generator=generator), torch.rand(3, 50, generator=generator)
    k = torch.tensor([3, 7, 12])
    fast, plain = (soft_topk(embeddings, scores, k, slots=12, rounds=5, backend=name) for name in ("triton", "torch"))
    for name in ("mask", "positions", "groups"):
        assert torch.equal(getattr(fast, name), getattr(plain, name)), name
    torch.testing.assert_close(fast.embeddings, plain.embeddings)


@needs_interpreter
def test_long_documents_fall_back(monkeypatch):
    from transpooler.model.ops.soft_topk import triton_backend, triton_group_sum

    monkeypatch.setattr(triton_group_sum, "MAX_TOKENS", 16)
    monkeypatch.setattr(triton_backend, "MAX_TOKENS", 16)
    generator = torch.Generator().manual_seed(3)
    embeddings, scores = torch.randn(2, 40, 4, generator=generator), torch.rand(2, 40, generator=generator)
    fast, plain = (soft_topk(embeddings, scores, 5, backend=name) for name in ("triton", "torch"))
    torch.testing.assert_close(fast.embeddings, plain.embeddings)
    assert torch.equal(fast.groups, plain.groups)


def test_float64_is_refused():
    with pytest.raises(ValueError, match="backend: 'triton' on cpu"):
        soft_topk(torch.rand(1, 8, 2), torch.rand(1, 8, dtype=torch.float64), 2, backend="triton")


def test_kernels_compile_for_an_h100(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(COMPILE), "64", "8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("sm_90") == 5

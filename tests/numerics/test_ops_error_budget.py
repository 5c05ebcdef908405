"""The rule for numbers: against float64, fast paths err at most 2x (forward) or 3x (gradients) what naive code errs.

Naive: the paper's steps in tensor operations in the same dtype (benchmarks.soft_topk.stepwise).
"""

import pytest
import torch
from torch import Tensor

from transpooler.benchmarks.soft_topk.stepwise import stepwise_soft_topk
from transpooler.model.ops.soft_topk import soft_topk

BATCH, K, DIM = 2, 8, 24
FLOOR = 4
"""Units of the dtype's rounding, at the largest value's scale, that are always granted."""


def _scores(kind: str, num_tokens: int, generator: torch.Generator) -> Tensor:
    if kind == "separated":
        steps = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(BATCH)])
        return (steps + 1) / num_tokens
    return torch.randint(1, 9, (BATCH, num_tokens), generator=generator) / 8  # eight values: ties everywhere


def _run(pool, embeddings: Tensor, scores: Tensor, grad: Tensor) -> list[Tensor]:
    embeddings, scores = embeddings.clone().requires_grad_(), scores.clone().requires_grad_()
    pooled = pool(embeddings, scores)
    grads = torch.autograd.grad(pooled, (embeddings, scores), grad.to(pooled.dtype))
    return [part.detach().double() for part in (pooled, *grads)]


@pytest.mark.parametrize("kind", ["separated", "ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpp", "torch", "triton"])
def test_errors_stay_within_the_budget(backend, dtype, kind):
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("with a GPU, tests/gpu runs the compiled kernels")
    generator = torch.Generator().manual_seed(1)
    num_tokens = 32 if backend == "triton" else 256  # interpreted
    scores = _scores(kind, num_tokens, generator)
    embeddings = torch.randn(BATCH, num_tokens, DIM, generator=generator).to(dtype)
    grad = torch.randn(BATCH, K, DIM, generator=generator).to(dtype)
    exact = _run(
        lambda e, s: soft_topk(e, s, K, backend="torch").embeddings, embeddings.double(), scores.double(), grad
    )
    naive = _run(lambda e, s: stepwise_soft_topk(e, s, K)[0], embeddings, scores, grad)
    fast = _run(lambda e, s: soft_topk(e, s, K, backend=backend).embeddings, embeddings, scores, grad)
    for index, name in enumerate(("pooled", "gradient of embeddings", "gradient of scores")):
        allowed, rounding = (2 if index == 0 else 3), torch.finfo(torch.float32 if index == 2 else dtype).eps
        error, budget = ((part[index] - exact[index]).abs().max() for part in (fast, naive))
        assert error <= allowed * budget + FLOOR * rounding * exact[index].abs().max(), name


@pytest.mark.parametrize("kind", ["separated", "ties"])
def test_float64_is_the_reference_itself(kind):
    """What the budget measures against equals the pair-by-pair oracle."""
    generator = torch.Generator().manual_seed(2)
    scores = _scores(kind, 64, generator)[:1].double()
    embeddings = torch.randn(1, 64, 3, generator=generator, dtype=torch.float64)
    grad = torch.randn(1, 4, 3, generator=generator, dtype=torch.float64)
    oracle = _run(lambda e, s: soft_topk(e, s, 4, backend="reference").embeddings, embeddings, scores, grad)
    for pool in (
        lambda e, s: soft_topk(e, s, 4, backend="torch").embeddings,
        lambda e, s: soft_topk(e, s, 4, backend="cpp").embeddings,
        lambda e, s: stepwise_soft_topk(e, s, 4)[0],
    ):
        for a, b in zip(_run(pool, embeddings, scores, grad), oracle, strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)

"""The threshold gate: its gates and gradients against a float64 solution of their equation, ties, few tokens, modes."""

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from transpooler.model.ops import baselines
from transpooler.model.ops.soft_topk.plain import plain_operations
from transpooler.model.ops.threshold import soft_gates, threshold

K = torch.tensor([3, 1, 8, 2])


def given(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of 17 tokens: full, ragged, one with fewer than its k, one with equal scores."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(4, 17, 5, generator=generator, dtype=torch.float64).to(dtype)
    scores = torch.rand(4, 17, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    scores[3] = 0.3
    mask = torch.arange(17) < torch.tensor([17, 11, 6, 9])[:, None]
    mask[1, 2] = False
    return embeddings, scores, mask


def solved_gates(scores: np.ndarray, k: int) -> np.ndarray:
    """Gates of real tokens, by 200 halvings in float64 of the equation itself."""
    logits = np.log(scores / (1 - scores))
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(middle - logits))).sum() > k else (low, middle)
    return 1 / (1 + np.exp(low - logits))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_gates_solve_their_equation(dtype, tolerance):
    _, scores, mask = given()
    gates = soft_gates(scores.to(dtype), K, mask)
    assert not gates[~mask].any()
    assert (gates[2][mask[2]] == 1).all()  # six tokens, k of 8
    for row in (0, 1, 3):
        expected = solved_gates(scores[row][mask[row]].numpy(), int(K[row]))
        np.testing.assert_allclose(gates[row][mask[row]].numpy(), expected, atol=tolerance)
    torch.testing.assert_close(gates[3, :9], torch.full((9,), 2 / 9, dtype=dtype))


def test_gradients_are_those_of_the_equation():
    """Finite differences of the solution; tokens that are dropped have gradients, padding and what fits has none."""
    embeddings, scores, mask = given()
    scores.requires_grad_()
    pooled = threshold(embeddings, scores, K, mask_BN=mask, slots=8)
    weight = torch.randn(pooled.embeddings.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (grad,) = torch.autograd.grad((pooled.embeddings * weight).sum(), scores)
    assert not grad[~mask].any()
    assert not grad[2].any()
    for row in (0, 1, 3):
        kept, real = pooled.positions[row, : K[row]], mask[row].nonzero().squeeze(1)
        felt = torch.zeros(17, dtype=torch.float64)
        felt[kept] = (embeddings[row, kept] * weight[row, : K[row]]).sum(1)
        values, step = scores[row, real].detach().numpy(), 1e-5
        for number, token in enumerate(real.tolist()):
            change = np.zeros_like(values)
            change[number] = step
            two = [solved_gates(values + sign * change, int(K[row])) for sign in (1, -1)]
            difference = float(((two[0] - two[1]) / (2 * step) * felt[real].numpy()).sum())
            assert grad[row, token].item() == pytest.approx(difference, abs=1e-8, rel=1e-5)
        assert grad[row, real].all()
    hard = baselines.hard(embeddings, scores, K, mask_BN=mask, slots=8)
    assert not torch.autograd.grad((hard.embeddings * weight).sum(), scores)[0][0, ~(hard.groups[0] >= 0)].any()


def test_gradcheck_of_the_gates():
    _, scores, mask = given()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_gates(s, K, mask), scores, check_forward_ad=True)


def test_the_best_tokens_pass_unchanged_and_ties_go_to_the_earlier():
    embeddings, scores, mask = given(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = threshold(embeddings, scores.float(), K, mask_BN=mask, slots=8)
    for row, count in enumerate((3, 1, 6, 2)):
        best = torch.where(mask[row], scores[row], -1).sort(descending=True, stable=True).indices[:count].sort().values
        assert torch.equal(pooled.positions[row, :count], best)
        assert torch.equal(pooled.embeddings[row, :count], embeddings[row, best])
    assert pooled.positions[3, :2].tolist() == [0, 1]
    assert pooled.mask.sum(1).tolist() == [3, 1, 6, 2]
    whole = threshold(embeddings, scores.float(), 17)
    assert torch.equal(whole.embeddings, embeddings)


def test_bfloat16_embeddings_cost_no_precision_of_the_scores_gradient():
    embeddings, scores, mask = given(torch.bfloat16)
    weight = torch.randn(4, 8, 5, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    grads = []
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        leaf = scores.to(wide).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            pooled = threshold(embeddings.to(dtype), leaf, K, mask_BN=mask, slots=8)
        grads.append(torch.autograd.grad((pooled.embeddings * weight).sum(), leaf)[0].double())
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_scores_at_their_limits_give_finite_gradients():
    _, _, mask = given()
    for value in (0.0, 1.0, 1.00001):
        scores = torch.full((4, 17), value, requires_grad=True)
        gates = soft_gates(scores, K, mask)
        torch.testing.assert_close(gates.sum(1), torch.tensor([3.0, 1.0, 6.0, 2.0]))
        assert torch.autograd.grad(gates[:, ::2].sum(), scores)[0].isfinite().all()
    far = torch.tensor([[1.0] * 2 + [0.0] * 9998], requires_grad=True)
    gates = soft_gates(far, torch.tensor([2]), torch.ones(1, 10_000, dtype=torch.bool))
    assert gates.sum().item() == pytest.approx(2, abs=1e-3)
    assert torch.autograd.grad(gates[0, 0], far)[0].isfinite().all()


def test_modes_of_differentiation_and_of_running_agree():
    embeddings, scores, mask = given(torch.float32)
    scores = scores.float()

    def loss(e, s):
        return threshold(e, s, K, mask_BN=mask, slots=8).embeddings.square().sum()

    leaves = (embeddings.requires_grad_(), scores.requires_grad_())
    plain = torch.autograd.grad(loss(*leaves), leaves)
    again = torch.autograd.grad(checkpoint(loss, *leaves, use_reentrant=False), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(*leaves), leaves)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    with plain_operations():  # what ONNX translates, and torch.func can differentiate
        plainly = torch.autograd.grad(loss(*leaves), leaves)
        functional = torch.func.grad(loss, argnums=(0, 1))(*leaves)
    for others in (compiled, plainly, functional):
        for one, other in zip(plain, others, strict=True):
            torch.testing.assert_close(one, other)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda s: loss(embeddings, s), (scores.detach(),), (torch.ones_like(scores),))

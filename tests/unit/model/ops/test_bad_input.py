"""Bad arguments of soft_topk: one ValueError that names argument, value and expectation."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transpooler.model.ops import baselines
from transpooler.model.ops.soft_topk import argument_checks, soft_topk
from transpooler.model.ops.threshold import threshold

WHOLE = torch.ones(2, dtype=torch.int64)


def _scores(value: float) -> torch.Tensor:
    scores = torch.full((2, 8), 0.5)
    scores[1, 3] = value
    return scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: 0; expected an integer of at least 1"),
        ({"k": True}, "k: True; expected an integer"),
        ({"k": 2.0}, "k: 2.0; expected an integer"),
        ({"k": WHOLE}, r"k: torch.int64 \(2,\), slots None; expected int64 \(2,\) together with slots >= 1"),
        ({"k": WHOLE.int(), "slots": 2}, r"k: torch.int32 \(2,\)"),
        ({"k": 3 * WHOLE, "slots": 2}, r"k: 3 to 3; expected 1 to 2 \(slots\)"),
        ({"k": 0 * WHOLE, "slots": 2}, r"k: 0 to 0; expected 1 to 2"),
        ({"k": WHOLE, "slots": 2, "backend": "reference"}, "backend: 'reference' with a k for each document"),
        ({"k": None}, "k: None; expected an integer"),
        ({"slots": 2}, "slots: 2 with k 2; expected None, or a tensor k"),
        ({"embeddings_BND": [[[1.0]]]}, "embeddings: a list; expected a tensor"),
        ({"scores_BN": None}, "scores: a NoneType; expected a tensor"),
        ({"mask_BN": [[True]]}, "mask: a list; expected a tensor"),
        ({"base": "20"}, "base: '20'; expected a number above 1, at most 1e\\+30"),
        ({"base": 1.0}, "base: 1.0; expected a number above 1, at most 1e\\+30"),
        ({"base": 1e300}, "base: 1e\\+300; expected a number above 1, at most 1e\\+30"),
        ({"base": 1 + 1e-17}, "base: 1.0; expected"),
        ({"base": -2.0}, "base: -2.0; expected"),
        ({"base": True}, "base: True; expected"),
        ({"base": float("inf")}, "base: inf"),
        ({"base": float("nan")}, "base: nan"),
        ({"backend": "cuda"}, "backend: 'cuda'; expected one of auto, reference, torch, cpp, triton"),
        ({"mask_BN": torch.ones(2, 8)}, r"mask: torch.float32 \(2, 8\); expected a bool tensor \(2, 8\)"),
        ({"mask_BN": torch.ones(2, 3, dtype=torch.bool)}, r"mask: torch.bool \(2, 3\)"),
        ({"mask_BN": torch.ones(2, 8, dtype=torch.bool, device="meta")}, "mask: on meta; expected cpu"),
        ({"scores_BN": torch.rand(2, 4)}, r"scores: torch.float32 \(2, 4\); expected a floating tensor \(2, 8\)"),
        ({"scores_BN": torch.ones(2, 8, dtype=torch.int64)}, r"scores: torch.int64 \(2, 8\)"),
        ({"scores_BN": torch.rand(2, 8, device="meta")}, "scores: on meta; expected cpu, where the embeddings are"),
        ({"embeddings_BND": torch.rand(2, 8)}, r"embeddings: torch.float32 \(2, 8\); expected a floating tensor"),
        ({"embeddings_BND": torch.ones(2, 8, 3, dtype=torch.int32)}, "embeddings: torch.int32"),
        ({"embeddings_BND": torch.ones(2, 8, 3, dtype=torch.complex64)}, "embeddings: torch.complex64"),
        ({"embeddings_BND": torch.rand(2, 0, 3), "scores_BN": torch.rand(2, 0)}, "embeddings: 0 tokens"),
        (
            {"scores_BN": _scores(0.0)},
            r"scores: 0.0 at \[1, 3\]; expected finite numbers in \(0, 1\] where mask is True",
        ),
        ({"scores_BN": _scores(-0.5)}, r"scores: -0.5 at \[1, 3\]"),
        ({"scores_BN": _scores(1.5)}, r"scores: 1.5 at \[1, 3\]"),
        ({"scores_BN": _scores(float("nan"))}, r"scores: nan at \[1, 3\]"),
        ({"scores_BN": _scores(float("inf")), "k": 9}, r"scores: inf at \[1, 3\]"),
    ],
)
def test_errors_name_argument_value_and_expectation(change, message):
    arguments = {"embeddings_BND": torch.rand(2, 8, 3), "scores_BN": _scores(1.0), "k": 2} | change
    with pytest.raises(ValueError, match=f"^{message}"):
        soft_topk(**arguments)


def test_backends_that_cannot_run_say_what_they_need():
    embeddings, scores = torch.rand(2, 8, 3, device="meta"), torch.rand(2, 8, device="meta")
    with pytest.raises(ValueError, match=r"^backend: 'cpp' on meta; it needs CPU tensors, g\+\+ and ninja"):
        soft_topk(embeddings, scores, 2, backend="cpp")
    with pytest.raises(ValueError, match=r"^backend: 'triton' on meta; it needs the triton package, CUDA tensors"):
        soft_topk(embeddings, scores, 2, backend="triton")


def test_what_may_be_nan_and_what_a_sigmoid_with_its_floor_reaches():
    scores, mask = _scores(float("nan")), torch.ones(2, 8, dtype=torch.bool)
    mask[1, 3] = False
    assert soft_topk(torch.rand(2, 8, 3), scores, 2, mask_BN=mask).mask.all()
    assert soft_topk(torch.rand(2, 8, 3), torch.full((2, 8), 30.0).sigmoid() + 1e-5, 2).mask.all()
    assert soft_topk(torch.rand(2, 8, 3), _scores(1.5), 2, validate=False).mask.all()


def test_only_a_debug_flag_makes_a_gpu_wait(monkeypatch):
    cpu = torch.rand(2)
    gpu: Any = SimpleNamespace(is_meta=False, device=torch.device("cuda"))  # there is none here
    monkeypatch.delenv(argument_checks.DEBUG, raising=False)
    assert argument_checks.values_are_checked(cpu)
    assert not argument_checks.values_are_checked(gpu)
    monkeypatch.setenv(argument_checks.DEBUG, "1")
    assert argument_checks.values_are_checked(gpu)


@pytest.mark.parametrize(
    "operator",
    [
        *(
            baselines.hard,
            baselines.iterative_softmax,
            baselines.strided,
            baselines.strided_mean,
            baselines.weighted_mean,
        ),
        *(baselines.random, threshold),
    ],
)
def test_baselines_raise_alike(operator):
    with pytest.raises(ValueError, match=r"^k: 0; expected"):
        operator(torch.rand(2, 8, 3), torch.rand(2, 8), 0)
    with pytest.raises(ValueError, match=r"^embeddings: 0 tokens"):
        operator(torch.rand(2, 0, 3), torch.rand(2, 0), 2)

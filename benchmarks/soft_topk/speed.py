"""Time and memory of one call, forward and forward + backward, beside one `copy_` of the embeddings.

`copy_` into a warm buffer is what the memory of this machine allows; `steps` is the paper's algorithm in tensor
operations (stepwise.py), `reference` its oracle, pair by pair in Python. The other operators of the table stand beside
them, all but iterative_softmax, which `figures` times; `noise` is what exploration adds to any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transpooler.benchmarks.harness import Timing, measure, peak_memory_bytes
from transpooler.benchmarks.soft_topk.stepwise import stepwise_soft_topk
from transpooler.model.ops.exploration import document_keys, gumbel_noise
from transpooler.model.ops.operators import OPERATORS
from transpooler.model.ops.soft_topk import cpp_backend, soft_topk
from transpooler.model.ops.soft_topk.ops import group_sum_op, tournament_op
from transpooler.model.ops.soft_topk.tournament import num_rounds

BASE = 20.0
OTHERS = [name for name in OPERATORS if name not in ("successive_halving", "iterative_softmax")]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One table row's inputs."""

    batch: int
    num_tokens: int
    k: int
    dim: int
    dtype: torch.dtype
    device: str


def speed_rows(
    case: Case, backends: list[str], repeats: int, slow: bool, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Rows for `copy_`, the steps and each backend; with `slow` for the reference too (forward alone, three calls)."""
    embeddings_BND, scores_BN, grad_BKD = _inputs(case)
    pooling: dict[str, Callable] = {"steps": lambda e, s: stepwise_soft_topk(e, s, case.k)[0]}
    pooling |= {name: _backend(case.k, name) for name in backends}
    pooling |= {name: _operator(case.k, name) for name in OTHERS}
    target = torch.empty_like(embeddings_BND).copy_(embeddings_BND)
    forward: dict[str, Callable[[], Any]] = {"copy_": lambda: target.copy_(embeddings_BND)}
    forward |= {name: _forward(pool, embeddings_BND, scores_BN) for name, pool in pooling.items()}
    forward |= {f"{name}: {part}": call for name in backends for part, call in _parts(case, name).items()}
    forward["noise"] = _noise(scores_BN)
    both: dict[str, Callable[[], Any]] = {"copy_": forward["copy_"]}
    both |= {name: _both(pool, embeddings_BND, scores_BN, grad_BKD) for name, pool in pooling.items()}
    rows = []
    for kind, functions in (("forward", forward), ("forward + backward", both)):
        times = measure(functions, device=case.device, repeats=repeats, clock=clock)
        for name, timing in times.items():
            rows.append(_row(case, kind, name, timing, times))
            if kind == "forward + backward" and name in pooling:
                rows[-1] |= _memory(case, pooling[name], functions[name], embeddings_BND, scores_BN)
    if slow:
        reference = _forward(_backend(case.k, "reference"), embeddings_BND, scores_BN)
        times = measure(
            {"copy_": forward["copy_"], "steps": forward["steps"], "reference": reference},
            device=case.device, repeats=3, warm_up=0, clock=clock,
        )  # fmt: skip
        rows.append(_row(case, "forward", "reference", times["reference"], times))
    return rows


def saved_bytes(pool: Callable, embeddings_BND: Tensor, scores_BN: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, the embeddings and scores themselves left out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    embeddings_BND, scores_BN = embeddings_BND.detach().requires_grad_(), scores_BN.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = pool(embeddings_BND, scores_BN)
    for given in (embeddings_BND, scores_BN):
        kept.pop(given.untyped_storage().data_ptr(), None)
    del result
    return sum(kept.values())


def _inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    embeddings_BND = torch.randn(case.batch, case.num_tokens, case.dim, device=case.device).to(case.dtype)
    scores_BN = torch.rand(case.batch, case.num_tokens, device=case.device)
    grad_BKD = torch.randn(case.batch, case.k, case.dim, device=case.device).to(case.dtype)
    return embeddings_BND, scores_BN, grad_BKD


def _backend(k: int, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda e, s: soft_topk(e, s, k, base=BASE, backend=name).embeddings


def _operator(k: int, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """An operator of the table, in training."""
    operator = OPERATORS[name]
    settings = {"training": True} if "training" in operator.settings else {}
    return lambda e, s: operator.pool(e, s if operator.needs_scores else None, k, **settings).embeddings


def _noise(scores_BN: Tensor) -> Callable[[], Any]:
    """The noise of a stage and the keys of its documents."""
    ids_BN, draw = (scores_BN * 30_000).long(), torch.tensor(0)
    mask_BN = torch.ones_like(ids_BN).bool()
    return lambda: gumbel_noise(
        document_keys(ids_BN, torch.arange(ids_BN.shape[1]), mask_BN), scores_BN.shape[1], 1, draw
    )


def _forward(pool: Callable, embeddings_BND: Tensor, scores_BN: Tensor) -> Callable[[], Any]:
    def call() -> None:
        with torch.no_grad():
            pool(embeddings_BND, scores_BN)

    return call


def _both(pool: Callable, embeddings_BND: Tensor, scores_BN: Tensor, grad_BKD: Tensor) -> Callable[[], Any]:
    """Gradients are new at every call, as in training after `zero_grad`, and given back at its end."""
    embeddings_BND, scores_BN = embeddings_BND.detach().requires_grad_(), scores_BN.detach().requires_grad_()

    def call() -> None:
        pool(embeddings_BND, scores_BN).backward(grad_BKD)
        embeddings_BND.grad = scores_BN.grad = None

    return call


def _parts(case: Case, backend: str) -> dict[str, Callable[[], Any]]:
    """The two halves of the forward pass, each alone."""
    embeddings_BND, scores_BN, _ = _inputs(case)
    mask_BN = torch.ones_like(scores_BN, dtype=torch.bool)
    k_B1 = torch.full((case.batch, 1), case.k, device=case.device)
    arguments = (scores_BN, mask_BN, k_B1, case.k, num_rounds(case.num_tokens, case.k), BASE, backend)
    weights_BN, _, groups_BN, _, _ = tournament_op(*arguments)
    return {
        "tournament": lambda: tournament_op(*arguments),
        "group sum": lambda: group_sum_op(embeddings_BND, weights_BN, groups_BN, case.k, backend),
    }


def _row(case: Case, kind: str, name: str, timing: Timing, times: dict[str, Timing]) -> dict[str, Any]:
    return {
        "dtype": str(case.dtype).removeprefix("torch."),
        "pass": kind,
        "what": name,
        **timing.columns("ms"),
        "x_copy": round(timing.median_s / times["copy_"].median_s, 3),
        "x_faster_than_steps": round(times["steps"].median_s / timing.median_s, 2),
    }


def _memory(case: Case, pool: Callable, call: Callable, embeddings_BND: Tensor, scores_BN: Tensor) -> dict[str, Any]:
    size = embeddings_BND.numel() * embeddings_BND.element_size()
    peak = size + peak_memory_bytes(call, case.device, cpp_backend.release)
    return {
        "saved_share": round(saved_bytes(pool, embeddings_BND, scores_BN) / size, 4),
        "peak_x_embeddings_and_grad": round(peak / (2 * size), 3),
    }

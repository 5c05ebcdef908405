"""The C++ kernels for CPUs (cpp_backend.cpp and its headers), compiled once per machine type and torch version.

`python -m transpooler.model.ops` compiles them ahead of the first use.
"""

import functools
import warnings
from pathlib import Path
from types import ModuleType

from torch import Tensor

from transpooler.model.ops.cpp_extension import FAILURES, load_extension

SOURCE = Path(__file__).with_suffix(".cpp")
HEADERS = [SOURCE.with_name(name) for name in ("cpp_group_sum.h", "cpp_tournament.h")]


@functools.cache
def extension() -> ModuleType | None:
    """The compiled kernels; None, with one warning that says why and what it costs, where they cannot be built."""
    try:
        return load_extension(SOURCE, HEADERS)
    except FAILURES as error:
        warnings.warn(
            f"soft_topk: no C++ kernels ({str(error).splitlines()[0]}); plain torch serves, about five times slower. "
            "A C++ compiler (g++) and the ninja package mend that",
            stacklevel=2,
        )
        return None


def tournament(scores_BN, mask_BN, k_B1, slots: int, rounds: int, base: float) -> tuple[Tensor, ...]:
    """(weights, pooled scores, groups, positions, mask); plays as many rounds as each document needs."""
    return _require_extension().tournament(scores_BN, mask_BN, k_B1, slots, base)


def tournament_backward(
    grad_weights_BN, grad_scores_BS, scores_BN, mask_BN, k_B1, slots: int, rounds: int, base: float
) -> Tensor:
    """Gradient of the scores."""
    return _require_extension().tournament_backward(grad_weights_BN, grad_scores_BS, scores_BN, mask_BN, k_B1, base)


def group_sum(embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor, slots: int) -> Tensor:
    """out_j = sum of w_i e_i over the inputs i of group j; every embedding is read once."""
    return _require_extension().group_sum(embeddings_BND, weights_BN, groups_BN, slots)


def group_sum_backward(
    grad_BSD: Tensor, embeddings_BND: Tensor, weights_BN: Tensor, groups_BN: Tensor
) -> tuple[Tensor, Tensor]:
    """de_i = w_i g_group(i) and dw_i = <e_i, g_group(i)>, in one pass."""
    return _require_extension().group_sum_backward(grad_BSD, embeddings_BND, weights_BN, groups_BN)


def release() -> None:
    """Give back the memory (256 MiB at most) that freed gradients left for the next backward pass."""
    module = extension()
    if module is not None:
        module.release()


def _require_extension() -> ModuleType:
    module = extension()
    assert module is not None  # backends.choose_kernels
    return module

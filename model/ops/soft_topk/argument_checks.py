"""Bad arguments: one ValueError that names the argument, its value and what was expected."""

import os

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from transpooler.model.ops.schedule import HIGHEST_BASE
from transpooler.model.ops.soft_topk.backends import BACKENDS, choose_kernels
from transpooler.model.ops.soft_topk.tournament import num_rounds

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HIGHEST_SCORE = 1 + 2e-5
"""A sigmoid + 1e-5 reaches a little above 1."""
DEBUG = "TRANSPOOLER_DEBUG"
"""Environment variable; 1: values on a GPU are checked too, and the host waits for them."""


def promote(x: Tensor) -> Tensor:
    """In float32 at least: float64 stays what it is."""
    return x if x.dtype == torch.float64 else x.float()


def settle_arguments(embeddings, scores, k, mask, slots) -> tuple[Tensor, Tensor, int, Tensor]:
    """Check the tensors; return scores in at least float32, k of each document, slots of the batch, and the mask."""
    mask = check_tensors(embeddings, scores, k, mask, slots)
    slots = min(k if isinstance(k, int) else slots, mask.shape[1])
    k_B = torch.full(mask.shape[:1], k, device=mask.device) if isinstance(k, int) else k
    return promote(scores), k_B, slots, mask


def check_tensors(embeddings, scores, k, mask, slots) -> Tensor:
    """Check shapes, dtypes, devices and k without reading a tensor's values. Returns the mask, all True for None."""
    for name, given in (("embeddings", embeddings), ("scores", scores), ("mask", mask)):
        if not isinstance(given, Tensor) and (name != "mask" or given is not None):
            raise ValueError(f"{name}: a {type(given).__name__}; expected a tensor")
    if embeddings.dim() != 3 or embeddings.dtype not in DTYPES:
        raise ValueError(f"embeddings: {_describe(embeddings)}; expected a floating tensor (batch, tokens, dim)")
    if scores.shape != embeddings.shape[:2] or scores.dtype not in DTYPES:
        raise ValueError(f"scores: {_describe(scores)}; expected a floating tensor {tuple(embeddings.shape[:2])}")
    if embeddings.shape[1] == 0:
        raise ValueError("embeddings: 0 tokens; expected at least 1")
    if mask is None:
        mask = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if mask.shape != scores.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: {_describe(mask)}; expected a bool tensor {tuple(scores.shape)}")
    if isinstance(k, Tensor):
        if k.shape != scores.shape[:1] or k.dtype != torch.int64 or slots is None or slots < 1:
            expected = f"expected int64 ({scores.shape[0]},) together with slots >= 1"
            raise ValueError(f"k: {_describe(k)}, slots {slots}; {expected}")
    elif isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: {k!r}; expected an integer of at least 1")
    elif slots is not None:
        raise ValueError(f"slots: {slots} with k {k}; expected None, or a tensor k with one number for each document")
    for name, tensor in (("scores", scores), ("mask", mask), ("k", k)):
        if isinstance(tensor, Tensor) and tensor.device != embeddings.device:
            raise ValueError(f"{name}: on {tensor.device}; expected {embeddings.device}, where the embeddings are")
    return mask


def check_backend(backend: str, k, base: float, embeddings: Tensor, scores: Tensor) -> None:
    """Check the base, and that a backend that was named can run here."""
    if not isinstance(base, int | float) or not 1 < base <= HIGHEST_BASE:
        raise ValueError(f"base: {base!r}; expected a number above 1, at most {HIGHEST_BASE:g}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend == "reference" and isinstance(k, Tensor):
        raise ValueError("backend: 'reference' with a k for each document; expected one k for all, or another backend")
    if backend in ("cpp", "triton") and not torch.compiler.is_compiling():  # the operator asks again when it runs
        choose_kernels(backend, embeddings.device, scores.dtype == torch.float64)


def values_are_checked(tensor: Tensor) -> bool:
    """On CPUs yes: it is cheap beside the call. Elsewhere the host would wait, so only with TRANSPOOLER_DEBUG=1.

    Tensors without values (meta, and those of a FakeTensorMode) are never checked.
    """
    if torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    return tensor.device.type == "cpu" or os.environ.get(DEBUG) == "1"


def check_rounds(rounds: int | None, k_B: Tensor, mask_BN: Tensor) -> None:
    """Check that the rounds of halving suffice for every document."""
    if rounds is None or not k_B.numel():
        return
    needed = max(num_rounds(max(1, tokens), k) for tokens, k in zip(mask_BN.sum(1).tolist(), k_B.tolist(), strict=True))
    if rounds < needed:
        raise ValueError(f"rounds: {rounds}; expected at least {needed}, which the longest document needs")


def check_forward_mode(*tensors: Tensor) -> None:
    """Refuse dual tensors: without a formula torch would give tangents of zero."""
    if not torch.compiler.is_compiling() and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        raise NotImplementedError("soft_topk has no forward-mode derivative; use reverse mode (torch.autograd.grad)")


def check_values(scores_BN: Tensor, k, slots: int | None, mask_BN: Tensor | None) -> None:
    """Check that scores of real tokens lie in (0, 1], and each k in 1..slots."""
    if isinstance(k, Tensor) and k.numel() and not 1 <= int(k.min()) <= int(k.max()) <= (slots or 0):
        raise ValueError(f"k: {int(k.min())} to {int(k.max())}; expected 1 to {slots} (slots) for each document")
    if not scores_BN.numel():
        return
    known_BN = scores_BN if mask_BN is None else torch.where(mask_BN, scores_BN, 1)
    low, high = torch.aminmax(known_BN)
    if low > 0 and high <= HIGHEST_SCORE:  # NaN fails both
        return
    row, token = (~((known_BN > 0) & (known_BN <= HIGHEST_SCORE))).nonzero()[0].tolist()
    value = scores_BN[row, token].item()
    raise ValueError(f"scores: {value} at [{row}, {token}]; expected finite numbers in (0, 1] where mask is True")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"

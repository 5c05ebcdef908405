"""Which kernels run: four functions each, in plain torch, C++ (CPU) or Triton (CUDA).

tournament, tournament_backward, group_sum, group_sum_backward: contracts in ops.py.
"""

import functools
import importlib.util
import logging
from types import ModuleType

import torch

from transpooler.model.ops.soft_topk import cpp_backend, torch_backend

logger = logging.getLogger(__name__)
BACKENDS = ("auto", "reference", "torch", "cpp", "triton")


def choose_kernels(backend: str, device: torch.device, wide: bool) -> ModuleType:
    """The module of kernels for tensors on `device`; `wide`: float64 scores, which Triton's kernels do not take.

    Raises ValueError where `backend` was asked for by name and cannot run here.
    """
    if backend == "auto":
        return _choose_fastest(device.type, wide)
    if backend == "cpp":
        if device.type != "cpu" or cpp_backend.extension() is None:
            raise ValueError(f"backend: 'cpp' on {device.type}; it needs CPU tensors, g++ and ninja")
        return cpp_backend
    if backend == "triton":
        module = _import_triton()
        if module is None or not module.runs_on(device) or wide:
            raise ValueError(
                f"backend: 'triton' on {device.type}; it needs the triton package, CUDA tensors and float32 scores"
            )
        return module
    return torch_backend


@functools.cache
def _choose_fastest(device_type: str, wide: bool) -> ModuleType:
    module: ModuleType = torch_backend
    if device_type == "cpu" and cpp_backend.extension() is not None:
        module = cpp_backend
    elif device_type == "cuda" and not wide:
        module = _import_triton() or torch_backend
    logger.info("soft_topk on %s%s: %s", device_type, " (float64)" if wide else "", module.__name__)
    return module


@functools.cache
def _import_triton() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from transpooler.model.ops.soft_topk import triton_backend

    return triton_backend

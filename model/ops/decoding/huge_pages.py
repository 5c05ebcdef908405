"""Memory on pages of 2 MiB. A stream of weights on pages of 4 KiB runs at two thirds of its speed in a virtual machine,
where each new page costs two walks through tables."""

import contextlib
import mmap

import torch
from torch import Tensor

CHUNK_BYTES = 2**26
ALIGNMENT = 64


class HugePages:
    """Copies of tensors, one behind the other; plain pages where the system has no larger ones."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def copy(self, tensor: Tensor) -> Tensor:
        """The same values, contiguous, for as long as somebody has them."""
        size = -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if size > len(self._rest):
            self._rest = _allocate(max(size, CHUNK_BYTES))
        taken, self._rest = self._rest[: tensor.nbytes], self._rest[size:]
        return taken.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _allocate(num_bytes: int) -> Tensor:
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # no Linux, or one without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)

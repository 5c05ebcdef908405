"""A lock around the compilation of extensions, ours and DeepSpeed's."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock_build(name: str) -> Iterator[Path]:
    """Give the folder of extension `name` to one process at a time, on all hosts that share it.

    torch's own lock is a file that outlives a killed process; the next process waits for it forever. The kernel drops
    this one when its process ends, so that whoever holds it may remove torch's file.
    """
    from torch.utils.cpp_extension import get_default_build_root

    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "building", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        yield folder

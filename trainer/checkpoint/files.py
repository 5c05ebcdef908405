"""How a checkpoint's files are written and read: synced, hashed and recorded by the rank that writes them."""

import os
from pathlib import Path
from typing import Any

import torch

from transpooler.common.files import sha256_of
from transpooler.trainer.checkpoint.safe_load import load_file


class RecordingFiles:
    """Stands in for DeepSpeed's checkpoint engine: each rank syncs and hashes its own files, and reads weights only.

    A write that fails is remembered instead of raised: the other ranks are on their way to a barrier, and all must
    learn of it together.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.entries: dict[Path, dict[str, Any]] = {}
        self.problem: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state_dict: Any, path: str | Path) -> None:
        """torch.save, fsync, SHA-256."""
        try:
            torch.save(state_dict, path)
            self.entries[Path(path)] = synced_entry(Path(path))
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            self.problem = self.problem or str(error).splitlines()[0]

    def load(self, path: str | Path, map_location: Any = None) -> Any:
        """Weights-only, on the CPU."""
        return load_file(Path(path))


def synced_entry(path: Path) -> dict[str, Any]:
    """The file's line in the manifest, after its bytes are on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}

"""A checkpoint's files: what DeepSpeed calls them, and how each rank writes, syncs, hashes and records its own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transpooler.common import sha256_of
from transpooler.trainer.checkpoint.safe_load import load_file


class RecordingFiles:
    """Replaces DeepSpeed's checkpoint engine: each rank syncs and hashes the files it writes, and reads weights only.

    A failed write is recorded in `problem` instead of raised: the other ranks are on their way to a barrier, and all
    ranks must learn of the failure together.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.entries: dict[Path, dict[str, Any]] = {}
        self.problem: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state_dict: Any, path: str | Path) -> None:
        """torch.save, fsync, SHA-256."""

        def write() -> None:
            torch.save(state_dict, path)
            self.entries[Path(path)] = sync_and_hash(Path(path))

        self.record(write)

    def record(self, write: Callable[[], object]) -> None:
        """Call `write`, and keep what it says of a failure."""
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            self.problem = self.problem or str(error).splitlines()[0]

    def load(self, path: str | Path, map_location: Any = None) -> Any:
        """Weights-only, on the CPU."""
        return load_file(Path(path))


def sync_and_hash(path: Path) -> dict[str, Any]:
    """Flush the file to disk and return its entry in the manifest."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}


def optimizer_files(folder: Path) -> list[Path]:
    """DeepSpeed's files of optimizer states, one a rank, in order of the ranks; none at ZeRO stage 0."""
    return sorted(folder.glob("*_optim_states.pt"), key=_rank_of)


def model_file(folder: Path) -> Path:
    """DeepSpeed's file of weights and counters; that of rank 0 at ZeRO stage 3, where each rank writes one."""
    return model_files(folder)[0]


def model_files(folder: Path) -> list[Path]:
    """The files of weights and counters in order of the ranks: one, or one a rank at ZeRO stage 3."""
    return sorted(folder.glob("*model_states.pt"), key=_rank_of)


def _rank_of(path: Path) -> tuple[int, str]:
    number = path.name.partition("pp_rank_")[2].partition("_")[0]
    return (int(number) if number.isdigit() else 0), path.name

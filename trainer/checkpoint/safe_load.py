"""Reading checkpoint files without running anything that is in them.

DeepSpeed reads its files with pickle, which runs whatever code a file asks for, and checksums do not help against
someone who can also write the manifest. Inside `weights_only`, every torch.load uses torch's restricted unpickler,
whoever calls it: tensors, plain containers and four data classes of DeepSpeed pass, anything else is refused before it
runs.
"""

import glob
import os
import pickle
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from transpooler.common import UserError

_DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError),
    *(ArithmeticError, AssertionError, AttributeError, struct.error),
)
"""What torch's unpickler raises for files that are damaged, besides UnpicklingError."""
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own switch: torch.load then ignores weights_only=False of its callers."""


@contextmanager
def weights_only(path: Path) -> Iterator[None]:
    """Load files below `path` as plain data; one that holds more, or is damaged, is a UserError that names `path`."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, nothing of it was run: it holds more than tensors and plain values "
            f"({_reason(error)}); it is damaged or not a checkpoint of ours"
        ) from None
    except _DAMAGE as error:
        raise UserError(f"{path}: cannot be read as a checkpoint of ours ({_reason(error)}); choose another") from error
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before


@contextmanager
def without_patterns(folder: Path) -> Iterator[Path]:
    """A path to the folder in which DeepSpeed finds files: it globs, whatever [, * and ? the folder's own name has."""
    if not glob.has_magic(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as parent:
        link = Path(parent) / "checkpoints"
        link.symlink_to(folder.absolute())
        yield link


def load_file(path: Path, *, mmap: bool = False) -> Any:
    """Load one file of a checkpoint onto the CPU; with `mmap`, tensors are read from disk when they are used."""
    with weights_only(path):
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)


def _reason(error: Exception) -> str:
    """The line of torch's long message that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "GLOBAL" in line or "nsupported" in line), lines[0])[:200]

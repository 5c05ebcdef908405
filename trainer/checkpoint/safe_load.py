"""Reading checkpoint files without running anything that is in them.

DeepSpeed reads its files with pickle, which runs whatever code a file asks for, and checksums do not help against
someone who can write the manifest, too. Inside `weights_only`, torch's restricted unpickler reads every file, whoever
calls torch.load: tensors, plain containers and four data classes of DeepSpeed pass, the rest is refused before it runs.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from transpooler.common.errors import UserError

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own switch: torch.load then ignores weights_only=False of its callers."""


@contextmanager
def weights_only(path: Path) -> Iterator[None]:
    """Load files below `path` with nothing but data in them; what cannot be read so is a UserError that names it."""
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
    except (OSError, EOFError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a checkpoint of ours ({_reason(error)}); choose another") from error
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before


def load_file(path: Path, *, mmap: bool = False) -> Any:
    """One file of a checkpoint, on the CPU; with `mmap`, tensors are read only where they are looked at."""
    with weights_only(path):
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)


def _reason(error: Exception) -> str:
    """The telling line of torch's long explanations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "GLOBAL" in line or "nsupported" in line), lines[0])[:200]

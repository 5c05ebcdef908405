"""DeepSpeed's compiled operators: `python -m trainer.compiled_ops cpu_adam` builds one.

torch builds extensions under a lock file that outlives a killed process; the next one waits for it for ever. Here a
lock of the kernel, which ends with its process, goes around it: whoever holds that may remove the file.
"""

import fcntl
import os
import sys
from pathlib import Path
from typing import Any

from trainer.config import Config

BUILDERS = {"cpu_adam": "CPUAdamBuilder", "fused_adam": "FusedAdamBuilder"}


def operator_of(config: Config) -> str | None:
    """The operator that a run's optimizer is compiled from, or None."""
    if config.optimizer.name == "muon":
        return None
    if config.engine.offload_optimizer != "none":
        return "cpu_adam"
    return "fused_adam" if config.optimizer.name == "fused_adamw" else None


def load_operator(name: str) -> Any:
    """Build it where it is not built yet, and load it; one process at a time on all hosts that share the folder."""
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import get_default_build_root

    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "building", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        return get_accelerator().create_op_builder(BUILDERS[name]).load(verbose=False)


if __name__ == "__main__":
    from trainer.engine import choose_accelerator

    choose_accelerator()
    load_operator(sys.argv[1])

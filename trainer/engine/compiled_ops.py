"""DeepSpeed's compiled operators: `python -m transpooler.trainer.engine.compiled_ops cpu_adam` builds one."""

import sys
from typing import Any

from transpooler.model.ops.build_lock import lock_build
from transpooler.trainer.config import Config

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

    with lock_build(name):
        return get_accelerator().create_op_builder(BUILDERS[name]).load(verbose=False)


if __name__ == "__main__":
    from transpooler.trainer.engine.engine import choose_accelerator

    choose_accelerator()
    load_operator(sys.argv[1])

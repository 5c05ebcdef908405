"""DeepSpeed's compiled operators: `python -m transpooler.trainer.engine.compiled_ops cpu_adam` builds one (or more)."""

import sys
from typing import Any

from transpooler.model.ops.build_lock import lock_build
from transpooler.trainer.engine.distributed import choose_accelerator


def load_operator(name: str) -> Any:
    """Load an operator by DeepSpeed's name for it, and build it first where it is not built yet.

    One process at a time builds, on all hosts that share the folder of extensions.
    """
    choose_accelerator()
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    with lock_build(name):
        return ALL_OPS[name].load(verbose=False)


if __name__ == "__main__":
    for operator in sys.argv[1:]:
        load_operator(operator)

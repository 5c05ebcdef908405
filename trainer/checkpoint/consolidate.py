"""The weights of a checkpoint as one state dict, whatever ZeRO stage and number of ranks wrote it."""

import contextlib
import io
from pathlib import Path
from typing import Any

from transpooler.trainer.checkpoint.files import model_file, optimizer_files
from transpooler.trainer.checkpoint.safe_load import load_file, weights_only, without_patterns
from transpooler.trainer.engine.engine import choose_accelerator
from transpooler.trainer.run_folder import RunFolder


def consolidate_weights(run: Path, step: int) -> dict[str, Any]:
    """The checkpoint's weights by name, in float32 and whole, on the CPU.

    Raises UserError where a file is damaged or holds more than plain data.
    """
    folder = RunFolder(run).checkpoint(step)
    if not optimizer_files(folder):
        # Stage 0 shards nothing and trains in float32 alone.
        return load_file(model_file(folder))["module"]
    choose_accelerator()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # DeepSpeed prints every step of this.
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], weights_only(folder), without_patterns(folder.parent) as parent:
        trained = get_fp32_state_dict_from_zero_checkpoint(str(parent), tag=folder.name)
    # Of frozen parameters DeepSpeed's tool finds none at stage 1, and at the others those of the run's precision.
    others = {name: value for name, value in load_file(model_file(folder))["module"].items() if name not in trained}
    return {name: value.float() if value.is_floating_point() else value for name, value in (others | trained).items()}

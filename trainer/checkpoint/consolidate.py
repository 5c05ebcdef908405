"""The weights of a checkpoint as one state dict, whatever ZeRO stage and number of ranks wrote it."""

import contextlib
import io
from pathlib import Path
from typing import Any

from transpooler.trainer.checkpoint.safe_load import load_file, weights_only
from transpooler.trainer.run_folder import RunFolder


def consolidated_weights(run: Path, step: int) -> dict[str, Any]:
    """The checkpoint's weights by name, in float32: of ZeRO's shards, or as they were where nothing was sharded."""
    from transpooler.trainer.engine.distributed import choose_accelerator

    folder = RunFolder(run).checkpoint(step)
    choose_accelerator()
    if not list(folder.glob("*_optim_states.pt")):
        # Stage 0 trains in float32 alone: nothing is sharded.
        return load_file(folder / "mp_rank_00_model_states.pt")["module"]
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It reports its every step to the terminal.
    with weights_only(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)

"""What each training rank runs: `python -m transpooler.launch.train CONFIG... key=value...`.

`deepspeed --hostfile HOSTS --module transpooler.launch.train CONFIG` starts it on several hosts. An engine that can
start a program starts `transpooler train CONFIG` instead, which finds out that it is a rank and calls `train_as_rank`.
"""

import os
import sys
import time
from collections.abc import Sequence

from transpooler.common import UserError, set_quiet, without_collection
from transpooler.launch.arguments import Parser, split_settings
from transpooler.launch.exits import ignore_signals, run_continued
from transpooler.launch.ranks.identity import rank_identity

OTHER_RANKS_WAIT_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one rank (RANK, WORLD_SIZE, LOCAL_RANK from the environment); returns the exit code."""
    parser = Parser(prog="python -m transpooler.launch.train", description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="+", metavar="CONFIG|key=value")
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("--local_rank", type=int, help="given by DeepSpeed's launcher; LOCAL_RANK counts")
    parsed = parser.parse_args(arguments)
    return run_continued(lambda: train_as_rank(parsed.settings, quiet=parsed.quiet))


def adopt_rank() -> bool:
    """Whether an engine started this process as a rank of a job; if so, RANK and its kin are set from here on.

    SLURM is asked once: `train_as_rank` then finds everything in the environment.
    """
    identity = rank_identity(os.environ)
    if "RANK" not in os.environ and "RANK" not in identity:
        return False
    os.environ.update(identity)
    return True


def train_as_rank(settings: Sequence[str], *, quiet: bool) -> None:
    """Train as the rank that the environment names; rank 0 alone reports a mistake that all ranks see."""
    from transpooler.trainer.config import load_config

    set_quiet(quiet)
    try:
        os.environ.update(rank_identity(os.environ))
        config = load_config(*split_settings(settings))
        with without_collection():
            from transpooler.trainer.train import train

        train(config)
    except UserError:
        # Every rank sees most mistakes, but the user should read them once. The launcher ends all ranks within a second
        # of rank 0's exit, so the others report only what rank 0 does not see.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(OTHER_RANKS_WAIT_S)
        raise


if __name__ == "__main__":
    code = main()
    ignore_signals()
    sys.exit(code)

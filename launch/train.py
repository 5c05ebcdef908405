"""What each training rank runs: `python -m launch.train CONFIG... key=value...`.

`deepspeed --hostfile HOSTS --module launch.train CONFIG`, `torchrun -m launch.train CONFIG` and
`srun python -m launch.train CONFIG` start it on several hosts.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from common.errors import UserError
from launch.arguments import Parser, split_settings
from launch.exits import guarded

OTHER_RANKS_WAIT_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one rank (RANK, WORLD_SIZE, LOCAL_RANK from the environment); returns the exit code."""
    parser = Parser(prog="launch.train", description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="+", metavar="CONFIG|key=value")
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("--local_rank", type=int, help="given by DeepSpeed's launcher; LOCAL_RANK counts")
    parsed = parser.parse_args(arguments)
    return guarded(lambda: _train(parsed))


def _train(parsed: argparse.Namespace) -> None:
    from common.progress import set_quiet
    from launch.discovery import rank_identity
    from trainer.config_loader import load_config

    set_quiet(parsed.quiet)
    try:
        os.environ.update(rank_identity(os.environ))
        config = load_config(*split_settings(parsed.settings))
        from trainer.train import train

        train(config)
    except UserError:
        # Most mistakes are seen by every rank, and the user should read them once. The launcher ends all ranks within
        # a second of rank 0's exit, so the others only get to speak if rank 0 has nothing to say.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(OTHER_RANKS_WAIT_S)
        raise


if __name__ == "__main__":
    sys.exit(main())

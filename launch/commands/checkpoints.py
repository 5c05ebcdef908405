"""List the checkpoints of a run: step, size, age, ranks, ZeRO stage, whether they are valid or why not.

examples:
  transpooler checkpoints runs/finetune
  transpooler checkpoints runs/finetune --verify
"""

import argparse
from pathlib import Path

from transpooler.trainer.run_folder import require_run


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--verify", action="store_true", help="read and hash every file; without it names and sizes are compared"
    )


def run(parsed: argparse.Namespace) -> None:
    """`transpooler checkpoints`."""
    require_run(parsed.run)
    from transpooler.trainer.checkpoint.listing import describe

    print(describe(parsed.run, verify=parsed.verify))

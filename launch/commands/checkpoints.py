"""`transpooler checkpoints`: what a run can be resumed from."""

import argparse
from pathlib import Path

from transpooler.launch.arguments import add_command
from transpooler.trainer.run_folder import require_run


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "checkpoints",
        "list the checkpoints of a run: step, size, age, ranks, ZeRO stage, whether they are valid or why not",
        "  transpooler checkpoints runs/finetune\n  transpooler checkpoints runs/finetune --verify",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--verify", action="store_true", help="read and hash every file; without it names and sizes are compared"
    )


def run(parsed: argparse.Namespace) -> None:
    """`transpooler checkpoints`."""
    require_run(parsed.run)
    from transpooler.trainer.checkpoint.listing import describe

    print(describe(parsed.run, verify=parsed.verify))

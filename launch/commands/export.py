"""`transpooler export`: a checkpoint to a folder that `transformers` loads."""

import argparse
from pathlib import Path

from transpooler.launch.arguments import add_command, positive
from transpooler.trainer.run_folder import require_run


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "export",
        "turn a checkpoint of a run into a Hugging Face model folder",
        "  transpooler export runs/finetune --output my-model\n"
        "  transpooler export runs/finetune --output my-model --step 1000",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--step", type=positive, metavar="N", help="the checkpoint of this step (default: the newest)")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler export`."""
    require_run(parsed.run)
    from transpooler.trainer.weights.export import export_run

    export_run(parsed.run, parsed.output, parsed.step)
    print(parsed.output)

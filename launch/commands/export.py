"""Turn a checkpoint of a run into a Hugging Face model folder.

examples:
  transpooler export runs/finetune --output my-model
  transpooler export runs/finetune --output my-model --step 1000
"""

import argparse
from pathlib import Path

from transpooler.launch.arguments import positive
from transpooler.trainer.run_folder import require_run


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--step", type=positive, metavar="N", help="the checkpoint of this step (default: the newest)")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler export`."""
    require_run(parsed.run)
    from transpooler.trainer.weights.export import export_run

    export_run(parsed.run, parsed.output, parsed.step)
    print(parsed.output)

"""Turn a checkpoint of a run into a Hugging Face model folder, or write an older such folder anew.

examples:
  transpooler export runs/finetune --output my-model
  transpooler export runs/finetune --output my-model --step 1000
  transpooler export old-model --output my-model    today's code beside the same weights
"""

import argparse
from pathlib import Path

from transpooler.launch.arguments import positive
from transpooler.trainer.run_folder import RunFolder, require_run


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or an exported model")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--step", type=positive, metavar="N", help="the checkpoint of this step (default: the newest)")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler export`."""
    if parsed.step is None and not RunFolder(parsed.run).config.is_file() and (parsed.run / "config.json").is_file():
        from transpooler.trainer.weights.export import renew_export

        renew_export(parsed.run, parsed.output)
    else:
        require_run(parsed.run)
        from transpooler.trainer.weights.export import export_run

        export_run(parsed.run, parsed.output, parsed.step)
    print(parsed.output)

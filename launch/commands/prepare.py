"""Turn documents into tokenized shards; goes on where it was killed, does nothing where they are complete.

examples:
  transpooler prepare my.yaml
  transpooler prepare my.yaml prepare.output=shards 'prepare.sources.train=[papers/*.jsonl.gz]'
  sbatch --wait --array=0-15 --wrap 'transpooler prepare my.yaml' && transpooler prepare my.yaml
"""

import argparse
import os

from transpooler.common import UserError
from transpooler.launch.arguments import add_settings, load_checked_config


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add_settings(parser)
    parser.add_argument(
        "--task",
        metavar="I/N",
        help="do the I-th of N shares (from 0) and stop; the same command without it then does the rest. "
        "In a SLURM array this is taken from the array's variables; 'all' turns that off",
    )
    parser.add_argument("--executor", choices=("processes", "ray"), help="short for prepare.executor=...")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler prepare`."""
    if parsed.executor:
        parsed.settings.append(f"prepare.executor={parsed.executor}")
    config = load_checked_config(parsed)
    if config is None:
        return
    from transpooler.data_pipeline.prepare.prepare import prepare as prepare_shards

    prepare_shards(config.prepare, array_task(parsed.task))


def array_task(text: str | None) -> tuple[int, int] | None:
    """(index from 0, number of tasks) from --task or from SLURM's variables; None: everything."""
    if text == "all":
        return None
    if text is not None:
        left, _, right = text.partition("/")
        if not (left.isdecimal() and right.isdecimal() and int(left) < int(right)):
            raise UserError(f"--task {text}: give I/N with I from 0 to N - 1, for example 0/16, or all")
        return int(left), int(right)
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    if names[0] not in os.environ:
        return None
    if unset := [name for name in names if not os.environ.get(name, "").isdecimal()]:
        raise UserError(f"{names[0]} is set without {', '.join(unset)}; give --task I/N, or --task all")
    number, first, count = (int(os.environ[name]) for name in names)
    if not 0 <= number - first < count:
        raise UserError(f"{names[0]}={number}: the array must be numbered without gaps, for example --array=0-15")
    return number - first, count

"""`transpooler inspect`: statistics, histograms and samples of shards."""

import argparse
from pathlib import Path

from transpooler.launch.arguments import add_command


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "inspect",
        "show what is in shards: counts, drops, length histograms, samples decoded back to text",
        "  transpooler inspect shards\n  transpooler inspect shards/train --samples 5 --seed 1",
    )
    parser.add_argument(
        "shards", type=Path, metavar="SHARDS", help="folder that `transpooler prepare` wrote, or a split"
    )
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="documents shown of each split (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler inspect`."""
    from transpooler.data_pipeline.shards.inspect import describe_shards

    for line in describe_shards(parsed.shards, max(parsed.samples, 0), parsed.seed):
        print(line)

"""Show what is in shards: counts, drops, length histograms, samples decoded back to text.

examples:
  transpooler inspect shards
  transpooler inspect shards/train --samples 5 --seed 1
"""

import argparse

from transpooler.common import show_controls
from transpooler.launch.arguments import add_shards


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add_shards(parser)
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="documents shown of each split (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler inspect`."""
    from transpooler.data_pipeline.shards.inspect import describe_shards

    for line in describe_shards(parsed.shards, max(parsed.samples, 0), parsed.seed):
        print(show_controls(line))

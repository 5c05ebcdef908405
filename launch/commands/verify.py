"""Check shards: checksums, counts, decodability, tokenizer; names every bad file, exit code 2 if there is one.

examples:
  transpooler verify shards
"""

import argparse

from transpooler.common import UserError, one_line
from transpooler.launch.arguments import add_shards


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add_shards(parser)


def run(parsed: argparse.Namespace) -> None:
    """`transpooler verify`."""
    from transpooler.data_pipeline.shards.verify import find_problems

    found = list(find_problems(parsed.shards))
    for line in found:
        print(one_line(line))
    if found:
        raise UserError(f"{parsed.shards}: {len(found)} problems; remove the output and prepare again")
    print(one_line(f"{parsed.shards}: all well"))

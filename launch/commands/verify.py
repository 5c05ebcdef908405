"""`transpooler verify`: checks every shard."""

import argparse
from pathlib import Path

from transpooler.common.errors import UserError
from transpooler.launch.arguments import add_command


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "verify",
        "check shards: checksums, counts, decodability, tokenizer; names every bad file, exit code 2 if there is one",
        "  transpooler verify shards",
    )
    parser.add_argument(
        "shards", type=Path, metavar="SHARDS", help="folder that `transpooler prepare` wrote, or a split"
    )


def run(parsed: argparse.Namespace) -> None:
    """`transpooler verify`."""
    from transpooler.data_pipeline.shards.verify import find_problems

    found = list(find_problems(parsed.shards))
    for line in found:
        print(line)
    if found:
        raise UserError(f"{parsed.shards}: {len(found)} problems; remove the output and prepare again")
    print(f"{parsed.shards}: all well")

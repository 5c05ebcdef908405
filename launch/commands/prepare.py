"""`transpooler prepare`: documents to shards."""

import argparse

from launch.arguments import add_command, add_settings
from launch.checks import checked_config


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "prepare",
        "turn documents into tokenized shards; does nothing where they are complete",
        "  transpooler prepare my.yaml\n"
        "  transpooler prepare my.yaml prepare.output=shards 'prepare.sources.train=[papers/*.jsonl.gz]'",
    )
    add_settings(parser)


def run(parsed: argparse.Namespace) -> None:
    """`transpooler prepare`."""
    config = checked_config(parsed)
    if config is None:
        return
    from data_pipeline.prepare import prepare as prepare_shards

    prepare_shards(config.prepare)

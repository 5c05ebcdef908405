"""Prepare, pretrain, fine-tune, evaluate, summarize and report, on real text and within minutes; started again, it
skips what is done.

examples:
  transpooler demo
  transpooler demo --data papers.jsonl --output build/papers
"""

import argparse
from pathlib import Path

from transpooler.common import UserError
from transpooler.launch.arguments import positive, split_settings


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE|FOLDER",
        help="own documents instead of Python sources: a .jsonl or .jsonl.gz file of article/abstract pairs (split "
        "80/10/10), or a folder with train, validation and test files",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build/demo"), metavar="FOLDER", help="(default build/demo)"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings for both trainings, such as train.steps=20"
    )
    parser.add_argument("--processes", type=positive, default=2, metavar="N", help="training ranks (default 2)")


def run(parsed: argparse.Namespace) -> int | None:
    """`transpooler demo`."""
    from transpooler.launch.demo.demo import run_demo

    files, overrides = split_settings(parsed.settings)
    if files:
        raise UserError(f"{files[0]}: the demo has its own presets; give single settings such as train.steps=20")
    return run_demo(parsed.data, parsed.output, processes=parsed.processes, overrides=overrides, quiet=parsed.quiet)

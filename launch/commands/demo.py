"""See it work: notes are hidden in the documentation of installed packages, and a model that may read 32 tokens of each
passage learns to find them; beside it, models that read other tokens. Minutes; nothing is downloaded. With --data:
prepare, pretrain, fine-tune, evaluate, summarize and report on your own documents, from pretrained weights where they
are given. Started again, it skips what is done.

examples:
  transpooler demo
  transpooler demo --data papers.jsonl --output build/papers
  transpooler demo --data papers.jsonl --weights facebook/bart-base --output build/papers
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
        help="own documents: a .jsonl or .jsonl.gz file of article/abstract pairs (split 80/10/10), or a folder with "
        "train, validation and test files",
    )
    parser.add_argument(
        "--weights",
        metavar="WEIGHTS",
        help="with --data: start from pretrained weights, a folder or OWNER/NAME of the hub (docs/pretrained.md)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build/demo"), metavar="FOLDER", help="(default build/demo)"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings for all trainings, such as train.steps=20"
    )
    parser.add_argument("--processes", type=positive, default=2, metavar="N", help="training ranks (default 2)")


def run(parsed: argparse.Namespace) -> int | None:
    """`transpooler demo`."""
    files, overrides = split_settings(parsed.settings)
    if files:
        raise UserError(f"{files[0]}: the demo has its own presets; give single settings such as train.steps=20")
    if parsed.data is None and parsed.weights is not None:
        raise UserError("--weights: needs your documents beside it; give --data papers.jsonl")
    how = {"processes": parsed.processes, "overrides": overrides, "quiet": parsed.quiet}
    if parsed.data is None:
        from transpooler.launch.demo.notes import run_notes

        return run_notes(parsed.output, **how)
    from transpooler.launch.demo.papers import run_papers

    return run_papers(parsed.data, parsed.output, weights=parsed.weights, **how)

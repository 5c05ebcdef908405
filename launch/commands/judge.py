"""Write files for judges: two evaluations' summaries of the same documents, under blinded names.

judge.jsonl has a line a document, with its reference and the summaries A and B; key.json says which is which.

examples:
  transpooler judge runs/a/evaluation/test runs/b/evaluation/test --output judging
  transpooler evaluate runs/a evaluation.sources=true     # before it: judge.jsonl then has document and passages, too
"""

import argparse
from pathlib import Path

from transpooler.launch.arguments import whole


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("first", type=Path, metavar="EVALUATION", help="a folder that `transpooler evaluate` wrote")
    parser.add_argument("second", type=Path, metavar="EVALUATION", help="another one, of the same documents")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="receives judge.jsonl and key.json"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="draws which summary is A (default 0)")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler judge`."""
    from transpooler.trainer.report.judge import write_judge_files

    for path in write_judge_files((parsed.first, parsed.second), parsed.output, parsed.seed):
        print(path)

"""Write one self-contained HTML file about one or more run folders.

examples:
  transpooler report runs/finetune
  transpooler report runs/a runs/b --output compare.html
"""

import argparse
from pathlib import Path

from transpooler.trainer.run_folder import RunFolder, require_run


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the last run folder")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler report`."""
    for run in parsed.runs:
        require_run(run)
    from transpooler.trainer.report import write_report

    output = parsed.output or RunFolder(parsed.runs[-1]).report
    write_report(parsed.runs, output)
    print(output)

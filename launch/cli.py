"""The command line. Parsing only: what a command does is in launch.commands, imported when it runs.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.exits import guarded

_OVERVIEW = """\
Pretrain and fine-tune pooling encoder-decoders for long documents.

  transpooler prepare   documents (.jsonl, .jsonl.gz, .txt) -> tokenized shards
  transpooler train     shards -> run folder (checkpoints, metrics, exported model)
  transpooler evaluate  ROUGE and held-out loss beside honest baselines
  transpooler summarize documents -> summaries, with an exported model
  transpooler report    run folders -> one HTML file
  transpooler export    checkpoint -> Hugging Face folder
  transpooler demo      all of the above on the Python sources installed here
"""

_CONFIGURATION = """\
CONFIG files are YAML and hold what differs from the defaults; later files win over earlier ones, and key=value
over all files. A RUN folder's config.yaml is such a file, too. --print-config shows the result."""

_EXIT_CODES = "exit codes: 0 done, 2 a mistake in input or configuration, 75 preempted: run the same command again"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parsed = parse(arguments)
    return guarded(lambda: _run(parsed))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; settings may stand before and after options (argparse alone refuses that)."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (any(item.startswith("-") for item in rest) or not hasattr(parsed, "settings")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.settings += rest
    return parsed


def _run(parsed: argparse.Namespace) -> int | None:
    from common.progress import set_quiet
    from launch import commands

    set_quiet(parsed.quiet)
    command = getattr(commands, parsed.command)
    return command(parsed)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="transpooler",
        description=_OVERVIEW,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"transpooler {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_prepare(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_summarize(commands)
    _add_report(commands)
    _add_export(commands)
    _add_demo(commands)
    return parser


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments as (configuration files, overrides): what looks like key=value is an override."""
    overrides = [item for item in settings if _is_override(item)]
    return [item for item in settings if not _is_override(item)], overrides


def _is_override(item: str) -> bool:
    key, separator, _ = item.partition("=")
    return bool(separator) and all(part.isidentifier() for part in key.split("."))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("transpooler")
    except PackageNotFoundError:
        return "(not installed)"


def _add_command(commands: argparse._SubParsersAction, name: str, text: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"examples:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress; errors and results still print")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{parser.description}\n\n{_CONFIGURATION}"
    parser.add_argument("settings", nargs="+", metavar="CONFIG|key=value", help="YAML files and single settings")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "prepare",
        "turn documents into tokenized shards; does nothing where they are complete",
        "  transpooler prepare my.yaml\n"
        "  transpooler prepare my.yaml prepare.output=shards 'prepare.sources.train=[papers/*.jsonl.gz]'",
    )
    _add_settings(parser)


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "train",
        "pretrain or fine-tune; continues from the newest checkpoint of the run folder",
        "  transpooler train my.yaml run=runs/first train.steps=1000\n"
        "  transpooler train my.yaml --processes 4\n"
        "  transpooler train my.yaml train.init_from=runs/pretrain/export run=runs/finetune",
    )
    _add_settings(parser)
    parser.add_argument(
        "--processes",
        type=_positive,
        default=1,
        metavar="N",
        help="ranks on this machine, started by DeepSpeed's launcher (default 1)",
    )


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "evaluate",
        "generate summaries of held-out documents and score them against references and baselines",
        "  transpooler evaluate runs/finetune\n"
        "  transpooler evaluate my.yaml evaluation.split=validation evaluation.max_documents=100\n"
        "  transpooler evaluate runs/finetune --model untrained",
    )
    _add_settings(parser)
    parser.add_argument(
        "--model",
        metavar="FOLDER|untrained",
        help="an exported model, or 'untrained' for the same architecture with random weights (default RUN/export)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="receives generated.jsonl, metrics.json and highlights.json (default RUN/evaluation/SPLIT, "
        "or RUN/evaluation/SPLIT-untrained)",
    )


def _add_summarize(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "summarize",
        "summarize text files (one document each) and .jsonl or .jsonl.gz files (one document a line)",
        "  transpooler summarize paper.txt --model runs/finetune/export\n"
        "  pdftotext paper.pdf - | transpooler summarize - --model runs/finetune/export\n"
        "  transpooler summarize papers.jsonl.gz --model runs/finetune/export --json --output summaries.jsonl",
    )
    parser.add_argument("files", nargs="+", metavar="FILE|-", help="documents; - reads one text from standard input")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="an exported model")
    parser.add_argument("--num-beams", type=_positive, metavar="N", help="width of the beam search (default 4)")
    parser.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest summary (default 256)")
    parser.add_argument("--min-new-tokens", type=_positive, metavar="N", help="shortest summary (default 0)")
    parser.add_argument("--length-penalty", type=float, metavar="X", help="above 1 favours long ones (default 1.0)")
    parser.add_argument("--no-repeat-ngram-size", type=_positive, metavar="N", help="forbid repeated n-grams")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="documents generated together (default 8)")
    parser.add_argument(
        "--max-source-tokens",
        type=_positive,
        metavar="N",
        help="cut documents to this many tokens (default: the model's)",
    )
    parser.add_argument("--column", metavar="KEY", help="key of the document in .jsonl lines (default: recognised)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write here instead of standard output")
    parser.add_argument("--json", action="store_true", help="one JSON object per document, with its name and lengths")


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "report",
        "write one self-contained HTML file about one or more run folders",
        "  transpooler report runs/finetune\n  transpooler report runs/a runs/b --output compare.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the last run folder")


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "export",
        "turn a checkpoint of a run into a Hugging Face model folder",
        "  transpooler export runs/finetune --output my-model\n"
        "  transpooler export runs/finetune --output my-model --step 1000",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--step", type=_positive, metavar="N", help="the checkpoint of this step (default: the newest)")


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "demo",
        "prepare, pretrain, fine-tune, evaluate, summarize and report, on real text and within minutes; "
        "started again, it skips what is done",
        "  transpooler demo\n  transpooler demo --data papers.jsonl --output build/papers",
    )
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
    parser.add_argument("--processes", type=_positive, default=2, metavar="N", help="training ranks (default 2)")


if __name__ == "__main__":
    sys.exit(main())

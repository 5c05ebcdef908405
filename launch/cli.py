"""The command line: which commands there are. What each takes and does is in launch.commands, a module a command.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from transpooler import __version__
from transpooler.common import TESTED, check_version, say, set_quiet
from transpooler.launch.arguments import Parser, add_command
from transpooler.launch.exits import CONTINUED, code_of_signals, run_continued, run_stoppable

COMMANDS = (
    *("prepare", "inspect", "verify", "order", "adopt", "train", "launch", "doctor", "checkpoints", "evaluate"),
    *("judge", "summarize", "report", "export", "bench", "demo"),
)

_EXIT_CODES = (
    "exit codes: 0 done, 2 a mistake in input or configuration, 75 preempted and saved, 70 hung or lost a rank, "
    "130 Ctrl-C, 143 SIGTERM; after 70 and 75 run the same command again"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parsed = parse(arguments)
    set_quiet(parsed.quiet)
    command = import_module(f"transpooler.launch.commands.{parsed.command}")

    def run() -> int | None:
        for name in TESTED:
            if warning := check_version(name):
                say(warning)
        return command.run(parsed)

    if parsed.command in CONTINUED:
        return run_continued(run)
    return run_stoppable(run, code_of_signals(parsed.command))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; settings may stand before and after options (argparse alone refuses that)."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (any(item.startswith("-") for item in rest) or not hasattr(parsed, "settings")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.settings += rest
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="transpooler",
        description="Pretrain and fine-tune pooling encoder-decoders for long documents.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"transpooler {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name in COMMANDS:
        module = import_module(f"transpooler.launch.commands.{name}")
        module.add(add_command(commands, name, str(module.__doc__)))
    return parser


if __name__ == "__main__":
    sys.exit(main())

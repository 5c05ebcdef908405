"""What the parsers of several commands share. It imports nothing heavy."""

import argparse
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import NoReturn

from transpooler.common.exit_codes import USER_ERROR

CONFIGURATION = """\
CONFIG files are YAML and hold what differs from the defaults; later files win over earlier ones, and key=value
over all files. A RUN folder's config.yaml is such a file, too. --print-config shows the result."""


class Parser(argparse.ArgumentParser):
    """Prints a mistake as one line, like all other mistakes; `--help` shows the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"transpooler: error: {message}; see {self.prog} --help\n")


def add_command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command with --quiet; `text` says in its first paragraph what it does, and ends with `examples:`."""
    description, heading, examples = text.rstrip().partition("\n\nexamples:\n")
    sentence = description.partition("\n\n")[0].removesuffix(".")
    parser = commands.add_parser(
        name,
        help=sentence[0].lower() + sentence[1:],
        description=description,
        epilog=heading.lstrip() + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress; errors and results still print")
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add configuration files, key=value and --print-config."""
    parser.description = f"{parser.description}\n\n{CONFIGURATION}"
    parser.add_argument("settings", nargs="+", metavar="CONFIG|key=value", help="YAML files and single settings")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add the folder of shards that a command reads."""
    parser.add_argument(
        "shards", type=Path, metavar="SHARDS", help="folder that `transpooler prepare` wrote, or a split"
    )


def positive(text: str) -> int:
    """An option's whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def whole(text: str) -> int:
    """An option's whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def finite(text: str) -> float:
    """An option's number, not infinite or NaN."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments as (configuration files, overrides): what looks like key=value is an override."""
    overrides = [item for item in settings if _is_override(item)]
    return [item for item in settings if not _is_override(item)], overrides


def config_settings(settings: Sequence[str]) -> list[str]:
    """Settings with each run folder replaced by its config.yaml."""
    from transpooler.trainer.config.presets import find_config, is_preset

    paths, overrides = split_settings(settings)
    return [path if is_preset(path) else str(find_config(path)) for path in paths] + overrides


def _is_override(item: str) -> bool:
    key, separator, _ = item.partition("=")
    return bool(separator) and all(part.isidentifier() for part in key.split("."))

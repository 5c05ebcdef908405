"""What several commands share: arguments, and checks before they start. It imports nothing heavy."""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any, NoReturn

from transpooler.common import INCOMPLETE_SUFFIX, USER_ERROR, UserError, one_line
from transpooler.launch.exits import run_guarded
from transpooler.trainer.config import Config
from transpooler.trainer.config.presets import find_config, is_preset

CONFIGURATION = """\
CONFIG files are YAML and hold what differs from the defaults; later files win over earlier ones, and key=value
over all files. A RUN folder's config.yaml is such a file, too. --print-config shows the result."""


class Parser(argparse.ArgumentParser):
    """Prints a mistake as one line, like all other mistakes; `--help` shows the usage, or why it cannot."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if code := run_guarded(lambda: print(message, end="", file=file, flush=True)):
            sys.exit(code)

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"transpooler: error: {one_line(message)}; see {self.prog} --help\n")


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
    parser.add_argument("shards", metavar="SHARDS", help="folder or URL that `transpooler prepare` wrote, or a split")


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


def budget(text: str) -> float:
    """An option's budget: a whole number of tokens, or a share of a document, as a number with a point."""
    value = positive(text) if "." not in text else finite(text)
    if "." in text and not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of tokens nor a share such as 0.125")
    return value


def budgets(text: str) -> list[float]:
    """An option's list of budgets, separated by commas."""
    return [budget(part) for part in text.split(",")]


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments as (configuration files, overrides): what looks like key=value is an override."""
    overrides = [item for item in settings if _is_override(item)]
    return [item for item in settings if not _is_override(item)], overrides


def config_settings(settings: Sequence[str]) -> list[str]:
    """Settings with each run folder replaced by its config.yaml."""
    paths, overrides = split_settings(settings)
    return [path if is_preset(path) else str(find_config(path)) for path in paths] + overrides


def load_checked_config(parsed: argparse.Namespace) -> Config | None:
    """The configuration, checked; None after printing it (--print-config). UserError lists all that is wrong."""
    from transpooler.trainer.config.load import config_to_yaml, load_config

    config = load_config(*split_settings(config_settings(parsed.settings)))
    if not parsed.print_config:
        return config
    sys.stdout.write(config_to_yaml(config))
    return None


def require_targets(targets: Mapping[str, Path | None], inputs: Iterable[str]) -> None:
    """UserError unless all these files (option -> file) can be written and differ from each other and the inputs."""
    taken = {os.path.realpath(path): "an input" for path in inputs}
    for option, path in targets.items():
        if path is None:
            continue
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path}: is no regular file; choose another name")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{option} {path}: {folder} is no folder that can be written; choose another")
        for written in (path, path.with_name(path.name + INCOMPLETE_SUFFIX)):
            if (what := taken.setdefault(os.path.realpath(written), f"{option}, too")) != f"{option}, too":
                raise UserError(f"{option} {path}: {written} is {what}; choose another name")


def _is_override(item: str) -> bool:
    key, separator, _ = item.partition("=")
    return bool(separator) and all(part.isidentifier() for part in re.sub(r"\[\d+\]", "", key).split("."))

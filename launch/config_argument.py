"""Checks that several commands make before they start."""

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from transpooler.common.errors import UserError
from transpooler.common.files import INCOMPLETE_SUFFIX
from transpooler.launch.arguments import config_settings, split_settings
from transpooler.trainer.config import Config


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

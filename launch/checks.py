"""Checks that several commands make before they start."""

import argparse
import sys
from pathlib import Path

from common.errors import UserError
from launch.arguments import config_settings, split_settings
from trainer.config import Config


def checked_config(parsed: argparse.Namespace) -> Config | None:
    """The checked configuration, or None when it was only to be printed."""
    from trainer.config_loader import config_to_yaml, load_config

    config = load_config(*split_settings(config_settings(parsed.settings)))
    if not parsed.print_config:
        return config
    sys.stdout.write(config_to_yaml(config))
    return None


def require_run(folder: Path) -> None:
    """UserError unless `folder` is a run folder."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml); give the folder that `transpooler train` wrote")


def require_model(folder: Path) -> None:
    """UserError unless `folder` holds an exported model."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported model there (no config.json); train one or run `transpooler export`")

"""Check hosts, versions, compilers, disks and network before a run; exit code 2 when training would fail.

examples:
  transpooler doctor
  transpooler doctor --hostfile hosts
  transpooler doctor my.yaml cluster.hostfile=hosts cluster.interface=ib0
"""

import argparse
from pathlib import Path

from transpooler.launch.arguments import config_settings, split_settings


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("settings", nargs="*", metavar="CONFIG|key=value", help="YAML files and single settings")
    parser.add_argument("--hostfile", type=Path, metavar="HOSTS", help="check these hosts (default: this machine)")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler doctor`."""
    from transpooler.trainer.config import load_config

    files, overrides = split_settings(config_settings(parsed.settings))
    hostfile = [f"cluster.hostfile={parsed.hostfile.absolute()}"] if parsed.hostfile else []
    config = load_config(files, [*overrides, *hostfile])
    from transpooler.launch.cluster.doctor.doctor import examine, require_health, table

    rows = examine(config)
    print(table(rows))
    require_health(rows)

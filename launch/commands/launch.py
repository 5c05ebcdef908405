"""Train on many hosts; watch the ranks and restart them from the newest checkpoint.

examples:
  transpooler launch ssh my.yaml cluster.hostfile=hosts
  transpooler launch slurm my.yaml cluster.nodes=4 cluster.slurm.partition=gpu cluster.slurm.time=12:00:00
  transpooler launch kubernetes my.yaml cluster.nodes=4 cluster.kubernetes.image=me/transpooler > job.yaml
  transpooler launch openmpi my.yaml cluster.hostfile=hosts --dry-run

The cluster: section of the configuration holds hosts, environment and limits; docs/clusters.md explains it.
"""

import argparse
import sys
from pathlib import Path

from transpooler.launch.arguments import add_settings, config_settings, load_checked_config, split_settings
from transpooler.launch.cluster.targets import TARGETS
from transpooler.trainer.config.presets import is_preset


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    names = "\n".join(f"  {name:<11}{target.about}" for name, target in TARGETS.items())
    parser.add_argument("target", choices=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    add_settings(parser)
    parser.description = f"{parser.description}\n\ntargets:\n{names}"
    parser.add_argument(
        "--dry-run", action="store_true", help="print hosts, commands, environment and files; run nothing"
    )
    parser.add_argument(
        "--in-allocation", action="store_true", help="slurm: run in this allocation instead of submitting"
    )


def run(parsed: argparse.Namespace) -> int | None:
    """`transpooler launch`."""
    parsed.settings = config_settings(parsed.settings)
    config = load_checked_config(parsed)
    if config is None:
        return None
    from transpooler.launch.cluster.supervisor import Supervisor

    target = TARGETS[parsed.target]
    files, overrides = split_settings(parsed.settings)
    # Ranks may start in another folder.
    settings = [*(item if is_preset(item) else str(Path(item).absolute()) for item in files), *overrides]
    settings += ["--quiet"] if parsed.quiet else []
    if target.submits and not parsed.in_allocation:
        sys.stdout.write((target.describe if parsed.dry_run else target.submit)(config, settings))
    elif parsed.dry_run:
        print(Supervisor(target, config, settings).describe())
    else:
        return Supervisor(target, config, settings).run()
    return None

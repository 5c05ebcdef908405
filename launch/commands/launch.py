"""`transpooler launch`: the ranks of a run on many hosts, watched and restarted."""

import argparse
import sys

from transpooler.launch.arguments import add_command, add_settings, config_settings, split_settings
from transpooler.launch.cluster.targets import TARGETS
from transpooler.launch.config_argument import checked_config


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "launch",
        "train on many hosts; watch the ranks and restart them from the newest checkpoint",
        "  transpooler launch ssh my.yaml cluster.hostfile=hosts\n"
        "  transpooler launch slurm my.yaml cluster.nodes=4 cluster.slurm.partition=gpu cluster.slurm.time=12:00:00\n"
        "  transpooler launch kubernetes my.yaml cluster.nodes=4 cluster.kubernetes.image=me/transpooler > job.yaml\n"
        "  transpooler launch openmpi my.yaml cluster.hostfile=hosts --dry-run\n\n"
        "The cluster: section of the configuration holds hosts, environment and limits; docs/clusters.md explains it.",
    )
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
    config = checked_config(parsed)
    if config is None:
        return None
    from transpooler.launch.cluster.environment import absolute_settings
    from transpooler.launch.cluster.start import dry_run, supervise

    target = TARGETS[parsed.target]
    settings = absolute_settings(parsed.settings, split_settings(parsed.settings)[1])
    settings += ["--quiet"] if parsed.quiet else []
    if target.submits and not parsed.in_allocation:
        sys.stdout.write((target.describe if parsed.dry_run else target.submit)(config, settings))
    elif parsed.dry_run:
        print(dry_run(target, config, settings))
    else:
        return supervise(target, config, settings)
    return None

"""`transpooler train`: one run, in this process or in several ranks."""

import argparse

from launch.arguments import add_command, add_settings, config_settings, positive
from launch.checks import checked_config


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "train",
        "pretrain or fine-tune; continues from the newest checkpoint of the run folder",
        "  transpooler train my.yaml run=runs/first train.steps=1000\n"
        "  transpooler train my.yaml --processes 4\n"
        "  transpooler train my.yaml --processes 4 --dry-run\n"
        "  transpooler train my.yaml train.init_from=runs/pretrain/export run=runs/finetune",
    )
    add_settings(parser)
    parser.add_argument(
        "--processes",
        type=positive,
        default=1,
        metavar="N",
        help="ranks on this machine, started by DeepSpeed's launcher (default 1)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would need with --processes N ranks (parameters, memory a rank by ZeRO stage, tokens a "
        "step, checkpoint size) and stop; nothing is allocated, no rank starts",
    )


def run(parsed: argparse.Namespace) -> int | None:
    """`transpooler train`: in this process, or in several ranks."""
    config = checked_config(parsed)  # checked here, before any rank starts
    if config is None:
        return None
    if parsed.dry_run:
        from trainer.plan import lines_of, plan_run

        print("\n".join(lines_of(plan_run(config, parsed.processes), config, parsed.processes)))
        return None
    if parsed.processes > 1:
        from launch.ranks import run_ranks

        quiet = ["--quiet"] if parsed.quiet else []
        return run_ranks(parsed.processes, [*config_settings(parsed.settings), *quiet])
    from trainer.train import train as train_here

    train_here(config)
    return None

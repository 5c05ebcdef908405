"""Pretrain or fine-tune; continues from the newest checkpoint of the run folder.

examples:
  transpooler train my.yaml run=runs/first train.steps=1000
  transpooler train my.yaml --processes 4
  transpooler train my.yaml --processes 4 --dry-run
  transpooler train my.yaml train.init_from=runs/pretrain/export run=runs/finetune
"""

import argparse

from transpooler.common import without_collection
from transpooler.launch.arguments import add_settings, config_settings, load_checked_config, positive
from transpooler.launch.train import adopt_rank, train_as_rank
from transpooler.trainer.guards.run_lock import hold
from transpooler.trainer.run_folder import RunFolder


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add_settings(parser)
    parser.add_argument(
        "--processes",
        type=positive,
        default=1,
        metavar="N",
        help="ranks on this machine, started by DeepSpeed's launcher (default 1)",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher; LOCAL_RANK counts
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would need with --processes N ranks (parameters, memory a rank by ZeRO stage, tokens a "
        "step, checkpoint size) and stop; nothing is allocated, no rank starts",
    )


def run(parsed: argparse.Namespace) -> int | None:
    """`transpooler train`: in this process, in several ranks, or as the rank that this process is."""
    if parsed.processes == 1 and not (parsed.dry_run or parsed.print_config) and adopt_rank():
        train_as_rank(parsed.settings, quiet=parsed.quiet)
        return None
    config = load_checked_config(parsed)  # checked here, before any rank starts
    if config is None:
        return None
    config.engine.data_parallel_size(parsed.processes)  # refuses ranks that make no whole groups
    if parsed.dry_run:
        from transpooler.trainer.estimate.memory import describe, estimate_run

        print(describe(estimate_run(config, parsed.processes), config, parsed.processes))
        return None
    with hold(RunFolder(config.run).lock, "choose run=..."):  # before anything slow
        if parsed.processes > 1:
            from transpooler.launch.ranks.local import run_ranks

            quiet = ["--quiet"] if parsed.quiet else []
            return run_ranks(parsed.processes, [*config_settings(parsed.settings), *quiet])
        with without_collection():
            from transpooler.trainer.train import train as train_here

        train_here(config)
    return None

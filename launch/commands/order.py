"""Print the document keys of each global batch of a run as JSON Lines, without training.

A line holds step (as in metrics.jsonl: the first batch of a run makes step 1), epoch and keys, and does not depend
on the number of ranks or workers. No document is read. With --ledger it holds the ledger of metrics.jsonl, too.

examples:
  transpooler order runs/finetune --from-step 1200 --steps 10
  transpooler order my.yaml --steps 1000 --ledger | tail -n 1
"""

import argparse
import json
import sys

from transpooler.launch.arguments import add_settings, load_checked_config, whole


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add_settings(parser)
    parser.add_argument(
        "--from-step",
        type=whole,
        default=0,
        metavar="S",
        help="begin after S steps, as a run resumed there (default 0)",
    )
    parser.add_argument("--steps", type=whole, default=1, metavar="N", help="print so many batches (default 1)")
    parser.add_argument(
        "--ledger", action="store_true", help="add the run's ledger after each step (goes through all before)"
    )


def run(parsed: argparse.Namespace) -> None:
    """`transpooler order`."""
    config = load_checked_config(parsed)
    if config is None:
        return
    from transpooler.data_pipeline.order.corpus import list_batches
    from transpooler.trainer.state import TrainState

    state, start = TrainState(), 0 if parsed.ledger else parsed.from_step
    for step, epoch, keys in list_batches(config.data, config.seed, start, parsed.from_step + parsed.steps - start):
        state.record(keys)
        if step > parsed.from_step:
            row = {"step": step, "epoch": epoch, "keys": keys}
            sys.stdout.write(json.dumps(row | ({"ledger": state.ledger} if parsed.ledger else {})) + "\n")

"""Generate summaries of held-out documents and score them against references and baselines.

examples:
  transpooler evaluate runs/finetune
  transpooler evaluate my.yaml evaluation.split=validation evaluation.max_documents=100
  transpooler evaluate runs/finetune --model untrained
  transpooler evaluate runs/finetune --processes 4
  transpooler evaluate runs/finetune --keep 64,128,256
"""

import argparse
import os
from pathlib import Path

from transpooler.common import without_collection
from transpooler.launch.arguments import add_settings, budgets, config_settings, load_checked_config, positive
from transpooler.trainer.evaluation.own_metrics import load_metrics
from transpooler.trainer.guards.run_lock import hold
from transpooler.trainer.run_folder import EvaluationFolder, RunFolder
from transpooler.trainer.weights.models import require_model

UNTRAINED = "untrained"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add_settings(parser)
    parser.add_argument(
        "--model",
        metavar="FOLDER|untrained",
        help="an exported model, or 'untrained' for the same architecture with random weights (default RUN/export)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="receives generated.jsonl, metrics.json and highlights.json (default RUN/evaluation/SPLIT, "
        "or RUN/evaluation/SPLIT-untrained)",
    )
    parser.add_argument(
        "--keep",
        type=budgets,
        default=[None],
        metavar="K,...",
        help="tokens that the last pooling keeps of each document, or shares such as 0.125; each budget is an "
        "evaluation of its own, in FOLDER-keepK, and the report draws their curve (default: the model's largest)",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        default=1,
        metavar="N",
        help="ranks on this machine that share the documents; the results do not depend on it (default 1)",
    )


def run(parsed: argparse.Namespace) -> int | None:
    """`transpooler evaluate`: in this process, in several ranks, or as one of them."""
    config = load_checked_config(parsed)
    if config is None:
        return None
    load_metrics(config.evaluation.metrics)  # here, so that a mistake is told at once, and by one process
    untrained = parsed.model == UNTRAINED
    model = None if untrained else Path(parsed.model or RunFolder(config.run).export)
    if model is not None:
        require_model(model)
    name = f"{config.evaluation.split}-{UNTRAINED}" if untrained else config.evaluation.split
    output = parsed.output or RunFolder(config.run).evaluation(name).root
    if parsed.processes > 1:
        from transpooler.launch.ranks.local import run_ranks

        keep = None if parsed.keep == [None] else ",".join(map(str, parsed.keep))
        given = {"--model": parsed.model, "--output": parsed.output, "--keep": keep}
        options = [f"{name}={value}" for name, value in given.items() if value is not None]
        quiet = ["--quiet"] if parsed.quiet else []
        settings = config_settings(parsed.settings)
        with hold(EvaluationFolder(output).lock, "choose --output"):
            return run_ranks(parsed.processes, ["evaluate", *settings, *options, *quiet], module="transpooler")
    with without_collection():
        from transpooler.trainer.evaluation.evaluate import evaluate as evaluate_model
        from transpooler.trainer.evaluation.evaluate import print_evaluations

    results = [
        evaluate_model(
            config,
            model_folder=model,
            output=output if keep is None else output.with_name(f"{output.name}-keep{keep}"),
            keep=keep,
        )
        for keep in parsed.keep
    ]
    if os.environ.get("RANK", "0") == "0":
        print_evaluations(*results)
    return None

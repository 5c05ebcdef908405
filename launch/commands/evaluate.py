"""`transpooler evaluate`: summaries, ROUGE and losses beside baselines."""

import argparse
from pathlib import Path

from launch.arguments import add_command, add_settings
from launch.checks import checked_config, require_model

UNTRAINED = "untrained"


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "evaluate",
        "generate summaries of held-out documents and score them against references and baselines",
        "  transpooler evaluate runs/finetune\n"
        "  transpooler evaluate my.yaml evaluation.split=validation evaluation.max_documents=100\n"
        "  transpooler evaluate runs/finetune --model untrained",
    )
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


def run(parsed: argparse.Namespace) -> None:
    """`transpooler evaluate`."""
    config = checked_config(parsed)
    if config is None:
        return
    untrained = parsed.model == UNTRAINED
    model = None if untrained else Path(parsed.model or Path(config.run) / "export")
    if model is not None:
        require_model(model)
    name = f"{config.evaluation.split}-{UNTRAINED}" if untrained else config.evaluation.split
    from trainer.evaluate import evaluate as evaluate_model
    from trainer.evaluate import print_table

    print_table(
        evaluate_model(config, model_folder=model, output=parsed.output or Path(config.run) / "evaluation" / name)
    )

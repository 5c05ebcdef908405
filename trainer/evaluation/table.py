"""Evaluations as a table for the terminal."""

from typing import Any

from transpooler.common.tables import print_table
from transpooler.common.text import percent
from transpooler.trainer.evaluation.rouge import ROUGE_TYPES


def print_evaluations(*evaluations: dict[str, Any]) -> None:
    """Print evaluations of one split, a row each, and the lead-n baseline on standard output."""
    first = evaluations[0]
    rows = []
    for results in evaluations:
        shuffled = results["shuffled_loss"]
        losses = {"loss": f"{results['loss']:.3f}", "shuffled": "" if shuffled is None else f"{shuffled:.3f}"}
        rows.append(_row("model" if results["trained"] else "untrained", results, "rouge", "generated") | losses)
    rows.append(_row(f"lead-{first['lead_words']}", first, "lead_rouge", "lead"))
    print_table(f"{first['split']}, {first['num_documents']} documents: ROUGE F1 in % (95 % interval)", rows)


def _row(name: str, results: dict[str, Any], scores: str, text: str) -> dict[str, str]:
    cells = {kind: _cell(results[scores][kind]) for kind in ROUGE_TYPES}
    return {"": name, **cells, "words": f"{results['mean_words'][text]:.0f}"}


def _cell(interval: dict[str, float]) -> str:
    return f"{percent(interval['mean'])} ({percent(interval['low'])}-{percent(interval['high'])})"

"""Generated summaries beside their references: not the best ones, but an even spread from worst to best."""

from collections.abc import Sequence
from typing import Any

from trainer.report.runs import Run

NUM_SAMPLES = 9


def samples(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Up to NUM_SAMPLES documents of each trained model's evaluation, evenly spread over the ranks of ROUGE-1."""
    views = []
    for run in runs:
        for item in run.evaluations:
            if not item.metrics["trained"]:
                continue
            prefix = f"{run.name}: " if len(runs) > 1 else ""
            rows = [row for row in item.rows.values() if isinstance(row.get("rouge"), dict)]
            ranked = sorted(rows, key=lambda row: (row["rouge"]["rouge1"], row["key"]))
            views += [
                {
                    "name": f"{prefix}{ranked[place].get('id') or ranked[place]['key']}",
                    "rouge1": f"{100 * ranked[place]['rouge']['rouge1']:.1f}",
                    "place": f"{len(ranked) - place} of {len(ranked)}",
                    "generated": ranked[place]["generated"],
                    "reference": ranked[place]["reference"],
                }
                for place in reversed(spread(len(ranked), NUM_SAMPLES))
            ]
    return views


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` numbers below `count`, the first and the last among them, evenly spaced."""
    if count <= wanted:
        return list(range(count))
    return [round(number * (count - 1) / (wanted - 1)) for number in range(wanted)]

"""What readers are shown of a study, on the terminal and in quality.md alike."""

from collections.abc import Sequence
from typing import Any

from transpooler.benchmarks.quality.study import Study

SHOWN = {
    "loss": ("loss", 3),
    "facts": ("facts, %", 1),
    "rouge1": ("ROUGE-1", 1),
}
"""Column -> (heading, digits)."""
SCORES = ("facts", "rouge1")

Rows = Sequence[dict[str, Any]]
Readable = dict[str, list[dict[str, str]]]
"""Title -> rows of a table, as heading -> text."""


def readable(rows: Rows, study: Study) -> Readable:
    """Means with 95 % intervals, and what is clear about each arm against the baseline."""
    title = f"{study.name}: {budget_text(study)} a run; 95 % intervals over seeds and documents"
    baseline = next((row["arm"] for row in rows if row["arm"] == study.baseline), rows[0]["arm"])
    return {title: [_readable_row(row, baseline) for row in rows]}


def _readable_row(row: dict[str, Any], baseline: str) -> dict[str, str]:
    apart = f"loss_less_{baseline}"
    return {
        "arm": row["arm"],
        "seeds": str(row["seeds"]),
        **{heading: interval(row, key, digits) for key, (heading, digits) in SHOWN.items() if key in row},
        f"loss less {baseline}": f"{interval(row, apart, 3)} {row['loss_verdict']}" if apart in row else "",
        "reads its input": f"{row['reads_its_input']:.3f}",
        "steps": f"{row['steps']:,.0f}",
        "minutes": f"{row['train_minutes']:.1f}",
    }


def each_seed(single: Rows) -> Readable:
    """One line an arm: loss and, where there is one, score of each seed."""
    score = next((name for name in SCORES if name in single[0]), None)
    what = "loss" if score is None else f"{SHOWN[score][0]} (loss)"
    lines: dict[str, dict[str, str]] = {}
    for seed in sorted({row["seed"] for row in single}):
        for row in single:
            line = lines.setdefault(row["arm"], {"arm": row["arm"]})
            if row["seed"] == seed:
                loss = f"{row['loss']:.3f}"
                line[f"seed {seed}"] = loss if score is None else f"{row[score]:.1f} ({loss})"
    return {f"each seed: {what}": list(lines.values())}


def interval(row: dict[str, Any], column: str, digits: int) -> str:
    """'1.234 (1.200 to 1.268)'."""
    mean, low, high = (row[f"{column}{suffix}"] for suffix in ("", "_low", "_high"))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def budget_text(study: Study) -> str:
    """'2,000 steps'."""
    kind, amount = study.budget
    return f"{amount:,.10g} {kind.replace('_', ' ')}"


def notes(study: Study, single: Rows) -> str:
    """What the table is of, and how to read it."""
    seeds = {arm: tuple(row["seed"] for row in single if row["arm"] == arm) for arm in {row["arm"] for row in single}}
    unequal = " Arms differ in their seeds: compare with care." if len(set(seeds.values())) > 1 else ""
    alone = " One seed: the intervals know nothing of what another seed would give."
    missing = [arm.name for arm in study.arms if arm.name not in seeds]
    return (
        f"Study `{study.path.name}`, {budget_text(study)} a run. {study.description}{unequal}"
        f"{' Not finished: ' + ', '.join(missing) + '.' if missing else ''}\n\n"
        "95 % bootstrap intervals over documents and seeds; differences paired by seed and document, over the seeds "
        f"that both arms have.{alone if min(map(len, seeds.values())) == 1 else ''} reads its input: loss with another "
        "document's source less loss; 0 = the input is ignored. All columns: `quality.csv`, `seeds.csv`.\n"
    )

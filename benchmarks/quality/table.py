"""Tables of a study for readers, the same on the terminal and in quality.md."""

from collections.abc import Sequence
from typing import Any

from transpooler.benchmarks.quality.study import Study

SHOWN = {
    "loss": ("loss", 3),
    "facts": ("facts, %", 1),
    "rouge1": ("ROUGE-1", 1),
    "rouge2": ("ROUGE-2", 1),
    "rougeLsum": ("ROUGE-Lsum", 1),
    "evidence": ("evidence, %", 1),
}
"""Column -> (heading, digits)."""
SCORES = ("facts", "rouge1")

Rows = Sequence[dict[str, Any]]
Tables = dict[str, list[dict[str, str]]]
"""Title -> rows of a table, as heading -> text."""


def format_arms(rows: Rows, study: Study) -> Tables:
    """Format means with 95 % intervals, and each arm's verdict against the baseline."""
    title = f"{study.name}: {format_budget(study)} a run; 95 % intervals over seeds and documents{format_dialect(rows)}"
    baseline = next((row["arm"] for row in rows if row["arm"] == study.baseline), rows[0]["arm"])
    return {title: [_format_arm(row, baseline) for row in rows]}


def _format_arm(row: dict[str, Any], baseline: str) -> dict[str, str]:
    apart = f"loss_less_{baseline}"
    return {
        "arm": row["arm"],
        "seeds": str(row["seeds"]),
        **{heading: format_interval(row, key, digits) for key, (heading, digits) in SHOWN.items() if key in row},
        f"loss less {baseline}": f"{format_interval(row, apart, 3)} {row['loss_verdict']}" if apart in row else "",
        "reads its input": f"{row['reads_its_input']:.3f}",
        "steps": f"{row['steps']:,.0f}",
        "minutes": f"{row['train_minutes']:.1f}",
    }


def format_seeds(single: Rows) -> Tables:
    """Format one line an arm: the loss of each seed and, if there is one, its score."""
    score = next((name for name in SCORES if name in single[0]), None)
    what = "loss" if score is None else f"{SHOWN[score][0]} (loss)"
    lines: dict[str, dict[str, str]] = {}
    for seed in sorted({row["seed"] for row in single}):
        for row in single:
            line = lines.setdefault(row["arm"], {"arm": row["arm"]})
            if row["seed"] == seed:
                loss = f"{row['loss']:.3f}"
                line[f"seed {seed}"] = loss if score is None else f"{row[score]:.1f} ({loss})"
    return {f"each seed: {what}{format_dialect(single) if score == 'rouge1' else ''}": list(lines.values())}


def format_dialect(rows: Rows) -> str:
    """'; ROUGE as rouge-score', or nothing where no row has a score."""
    names = sorted({row["rouge_dialect"] for row in rows if "rouge_dialect" in row})
    return f"; ROUGE as {' and '.join(names)}" if names else ""


def format_interval(row: dict[str, Any], column: str, digits: int) -> str:
    """'1.234 (1.200 to 1.268)'."""
    mean, low, high = (row[f"{column}{suffix}"] for suffix in ("", "_low", "_high"))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def format_budget(study: Study) -> str:
    """'2,000 steps'."""
    kind, amount = study.budget
    return f"{amount:,.10g} {kind.replace('_', ' ')}"


def format_notes(study: Study, single: Rows) -> str:
    """Say what the table shows, and how to read it."""
    seeds = {arm: tuple(row["seed"] for row in single if row["arm"] == arm) for arm in {row["arm"] for row in single}}
    unequal = " Arms differ in their seeds: compare with care." if len(set(seeds.values())) > 1 else ""
    alone = " One seed: the intervals know nothing of what another seed would give."
    missing = [arm.name for arm in study.arms if arm.name not in seeds]
    return (
        f"Study `{study.path.name}`, {format_budget(study)} a run. {study.description}{unequal}"
        f"{' Not finished: ' + ', '.join(missing) + '.' if missing else ''}\n\n"
        "95 % bootstrap intervals over documents and seeds; differences paired by seed and document, over the seeds "
        f"that both arms have.{alone if min(map(len, seeds.values())) == 1 else ''} reads its input: loss with another "
        "document's source less loss; 0 = the input is ignored. All columns: `quality.csv`, `seeds.csv`.\n"
    )

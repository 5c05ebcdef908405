"""`transpooler bench quality` from end to end: prepare, train and evaluate every arm and seed, compare."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.quality.outcome import curves, read_arm, table_rows
from benchmarks.quality.runs import Stopped, Workplace, evaluate_run, prepare, train_arm
from benchmarks.quality.study import Study
from common.files import atomic_write
from common.progress import say

NAME = "quality"
SHOWN = {
    "loss": ("loss", 3),
    "facts": ("facts, %", 1),
    "rouge1": ("ROUGE-1", 1),
    "rouge2": ("ROUGE-2", 1),
    "rougeL": ("ROUGE-L", 1),
}


def bench_quality(
    study: Study, *, sources: dict[str, Path] | None, shards: Path | None, output: Path, quiet: bool = False
) -> int | None:
    """Run the study in `output`; returns the exit code of a run that did not finish (75: run me again), else None.

    `sources` are the documents of each split; `shards` the folder of prepared ones, where there are no sources.
    """
    place = Workplace(study=study, shards=shards or output / "shards", output=output, quiet=quiet)
    try:
        if sources is not None:
            prepare(place, sources)
        # Seed by seed: a study that is stopped early has compared all arms on the seeds that it has.
        runs: dict[str, dict[int, Path]] = {arm.name: {} for arm in study.arms}
        for seed in study.seeds:
            for arm in study.arms:
                run = train_arm(place, arm, seed)
                evaluate_run(run)
                runs[arm.name][seed] = run
    except Stopped as stopped:
        return stopped.code
    for path in write_outputs(study, runs, output):
        print(path)
    return None


def write_outputs(study: Study, runs: dict[str, dict[int, Path]], output: Path) -> list[Path]:
    """quality.json, .csv, .md, curves.csv and curves.png from finished runs; the table on standard output."""
    rows = table_rows([read_arm(arm, list(seeds.values()), study) for arm, seeds in runs.items()], study)
    points = [point for arm, seeds in runs.items() for point in curves(arm, seeds)]
    print_table(rows, study)
    paths = harness.write_results(NAME, rows, _notes(study), output)
    with atomic_write(output / "curves.csv") as file:
        writer = csv.DictWriter(file, list(points[0]) if points else ["arm"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(points)
    paths.append(output / "curves.csv")
    if importlib.util.find_spec("matplotlib") is None:
        say("no plot: matplotlib is not installed; pip install 'transpooler[bench]' and run the command again")
        return paths
    from benchmarks.quality.plots import write_plot

    title = f"{study.name}: {budget_text(study)} a run, {len(study.seeds)} seed(s)"
    return [*paths, write_plot(rows, points, output / "curves.png", title)]


def print_table(rows: list[dict[str, Any]], study: Study) -> None:
    """Means with 95 % intervals, and what is clear about each arm against the baseline."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 150)
    frame = box.HEAVY_HEAD if console.is_terminal else box.ASCII2
    title = f"{study.name}: {budget_text(study)} a run; 95 % intervals over seeds and documents"
    table = Table(box=frame, title=title)
    shown = {column: form for column, form in SHOWN.items() if column in rows[0]}
    headings = ("arm", "seeds", *(heading for heading, _ in shown.values()), f"loss less {study.baseline}", "minutes")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for row in rows:
        cells = [_interval(row, column, digits) for column, (_, digits) in shown.items()]
        apart = f"loss_less_{study.baseline}"
        against = f"{_interval(row, apart, 3)} {row['loss_verdict']}" if apart in row else ""
        table.add_row(row["arm"], str(row["seeds"]), *cells, against, f"{row['train_minutes']:.1f}")
    console.print(table)


def budget_text(study: Study) -> str:
    """'2,000 steps'."""
    kind, amount = study.budget
    return f"{amount:,.10g} {kind.replace('_', ' ')}"


def _interval(row: dict[str, Any], column: str, digits: int) -> str:
    mean, low, high = (row[f"{column}{suffix}"] for suffix in ("", "_low", "_high"))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _notes(study: Study) -> str:
    seeds = ", ".join(map(str, study.seeds))
    alone = "" if len(study.seeds) > 1 else " One seed: the intervals know nothing of what another seed would give."
    return (
        f"Study `{study.path.name}`, {budget_text(study)} a run, seeds {seeds}. {study.description}\n\n"
        "`_low`, `_high`: 95 % bootstrap intervals over documents and seeds, differences paired by seed and document."
        f"{alone} reads_its_input: loss with another document's source less loss; 0 = the input is ignored.\n"
    )

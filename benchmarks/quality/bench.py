"""`transpooler bench quality` from end to end: prepare, train and evaluate every arm and seed, compare."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transpooler.benchmarks import harness
from transpooler.benchmarks.quality.cells import Cells, collect_cells, find_cell, keep_cell
from transpooler.benchmarks.quality.outcome import compare_arms, list_seeds, stack_cells
from transpooler.benchmarks.quality.runs import (
    CommandFailed,
    StudyRun,
    Workplace,
    check_shards,
    check_study,
    evaluate_run,
    plan_run,
    prepare,
    train,
)
from transpooler.benchmarks.quality.study import Study
from transpooler.benchmarks.quality.table import format_arms, format_budget, format_notes, format_seeds
from transpooler.common import UserError, print_table, say

NAME = "quality"


def bench_quality(
    study: Study,
    *,
    sources: Callable[[], dict[str, Path]] | None,
    shards: Path | None,
    output: Path,
    quiet: bool = False,
) -> int | None:
    """Run the study in `output`; returns the exit code of a run that did not finish (75: run me again), else None.

    sources: makes the documents of each split; shards: the folder of prepared documents, needed without `sources`.
    """
    place = Workplace(study=study, shards=shards or output / "shards", output=output, quiet=quiet)
    if code := run_study(place, sources, make_cell):
        return code
    for path in write_outputs(study, collect_cells(place), output):
        print(path)
    return None


def finish_run(place: Workplace, run: StudyRun) -> None:
    """Train and evaluate a run, unless that is done."""
    train(place, run)
    evaluate_run(run)


def make_cell(place: Workplace, run: StudyRun) -> None:
    """Make the cell of a run, which is trained for it, unless there is one."""
    if find_cell(place, run) is None:
        finish_run(place, run)
        keep_cell(place, run)


def run_study(
    place: Workplace,
    sources: Callable[[], dict[str, Path]] | None,
    finish: Callable[[Workplace, StudyRun], None] = finish_run,
) -> int | None:
    """Prepare what `sources` makes, and `finish` every run that is asked for; returns what `bench_quality` does."""
    study = place.study
    check_study(place)
    try:
        if sources is not None:
            prepare(place, sources())
        check_shards(place)
        # Seed by seed: a study that is stopped early has compared all arms on the seeds that it has.
        for seed in study.seeds:
            for arm in study.arms:
                if arm.name in study.asked:
                    finish(place, plan_run(place, arm, seed))
    except CommandFailed as failed:
        return failed.code
    return None


def write_outputs(study: Study, cells: Cells, output: Path) -> list[Path]:
    """Print tables and write quality.json, .csv, .md, seeds.csv, curves.csv, curves.png and, where arms differ
    in what they keep alone, budgets.png; returns their paths."""
    results = [stack_cells(arm, seeds) for arm, seeds in cells.items()]
    if not results:
        raise UserError(f"{output}: no run of {study.path} for a table; finish one, or choose another --output")
    rows, single = compare_arms(results, study), list_seeds(results)
    points = [
        {"arm": arm, "seed": seed} | point
        for arm, seeds in cells.items()
        for seed, cell in seeds.items()
        for point in cell.curve
    ]
    tables = format_arms(rows, study) | format_seeds(single)
    for title, table in tables.items():
        print_table(title, table)
    paths = harness.write_results(
        NAME,
        rows,
        format_notes(study, single),
        output,
        where=_environment(cells),
        to_read=harness.markdown_tables(tables),
        more={"seeds": single},
    )
    paths.append(harness.write_csv(output / "seeds.csv", single))
    paths.append(harness.write_csv(output / "curves.csv", points))
    if importlib.util.find_spec("matplotlib") is None:
        say("no plot: matplotlib is not installed; pip install 'transpooler[bench]' and run the command again")
        return paths
    from transpooler.benchmarks.quality.plots import write_budget_plot, write_plot

    title = f"{study.name}: {format_budget(study)} a run, {len({row['seed'] for row in single})} seed(s)"
    paths.append(write_plot(rows, points, output / "curves.png", title))
    return [*paths, *write_budget_plot(rows, output / "budgets.png", title)]


def _environment(cells: Cells) -> dict[str, Any]:
    """This machine, and what the runs were trained with: a run counts once for each commit or machine it has seen."""
    machine = {key: value for key, value in harness.environment().items() if key != "threads"}
    runs = {
        run: found for seeds in cells.values() for cell in seeds.values() for run, found in cell.trained_with.items()
    }
    trained = [kind for found in runs.values() for kind in harness.group_environments(found)]
    return harness.table_environment(machine, trained_with=trained)

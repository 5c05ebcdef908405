"""`transpooler bench quality` from end to end: prepare, train and evaluate every arm and seed, compare."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transpooler.benchmarks import harness
from transpooler.benchmarks.quality.outcome import compare_arms, list_parts, list_seeds, read_arm, read_curves
from transpooler.benchmarks.quality.runs import (
    CommandFailed,
    Workplace,
    check_shards,
    check_study,
    evaluate_run,
    find_finished_runs,
    plan_run,
    prepare,
    read_environments,
    train,
)
from transpooler.benchmarks.quality.study import Study
from transpooler.benchmarks.quality.table import format_arms, format_budget, format_notes, format_seeds
from transpooler.common import print_table, say

NAME = "quality"
Runs = dict[str, dict[int, Path]]
"""Arm -> seed -> run folder."""


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
    if code := run_study(place, sources):
        return code
    for path in write_outputs(study, find_finished_runs(place), output):
        print(path)
    return None


def run_study(place: Workplace, sources: Callable[[], dict[str, Path]] | None) -> int | None:
    """Prepare what `sources` makes, train and evaluate what is asked for; returns what `bench_quality` does."""
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
                    evaluate_run(train(place, plan_run(place, arm, seed)))
    except CommandFailed as failed:
        return failed.code
    return None


def write_outputs(study: Study, runs: Runs, output: Path) -> list[Path]:
    """Print tables and write quality.json, .csv, .md, seeds.csv, curves.csv and curves.png; returns their paths."""
    results = [read_arm(arm, seeds, study) for arm, seeds in runs.items()]
    rows, single = compare_arms(results, study), list_seeds(results)
    points = [point for arm, seeds in runs.items() for point in read_curves(arm, seeds)]
    tables = format_arms(rows, study) | format_seeds(single)
    for title, table in tables.items():
        print_table(title, table)
    paths = harness.write_results(
        NAME,
        rows,
        format_notes(study, single),
        output,
        where=_environment(runs),
        to_read=harness.markdown_tables(tables),
        more={"seeds": single},
    )
    paths.append(harness.write_csv(output / "seeds.csv", single))
    paths.append(harness.write_csv(output / "curves.csv", points))
    if importlib.util.find_spec("matplotlib") is None:
        say("no plot: matplotlib is not installed; pip install 'transpooler[bench]' and run the command again")
        return paths
    from transpooler.benchmarks.quality.plots import write_plot

    title = f"{study.name}: {format_budget(study)} a run, {len({row['seed'] for row in single})} seed(s)"
    return [*paths, write_plot(rows, points, output / "curves.png", title)]


def _environment(runs: Runs) -> dict[str, Any]:
    """This machine, and what the runs were trained with: a run counts once for each commit or machine it has seen."""
    machine = {key: value for key, value in harness.environment().items() if key != "threads"}
    folders = sorted({folder for seeds in runs.values() for run in seeds.values() for folder in list_parts(run)})
    trained = [kind for folder in folders for kind in harness.group_environments(read_environments(folder))]
    return harness.table_environment(machine, trained_with=trained)

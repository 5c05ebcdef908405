"""`transpooler bench quality` from end to end: prepare, train and evaluate every arm and seed, compare."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transpooler.benchmarks import harness
from transpooler.benchmarks.quality.outcome import curves, parts, read_arm, seed_rows, table_rows
from transpooler.benchmarks.quality.runs import (
    Stopped,
    Workplace,
    check,
    check_shards,
    environments,
    evaluate_run,
    finished_runs,
    plan,
    prepare,
    train,
)
from transpooler.benchmarks.quality.study import Study
from transpooler.benchmarks.quality.table import budget_text, each_seed, notes, readable
from transpooler.common.log import say
from transpooler.common.tables import print_table

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

    `sources` makes the documents of each split; `shards` the folder of prepared ones, where there are no sources.
    """
    place = Workplace(study=study, shards=shards or output / "shards", output=output, quiet=quiet)
    check(place)
    try:
        if sources is not None:
            prepare(place, sources())
        check_shards(place)
        # Seed by seed: a study that is stopped early has compared all arms on the seeds that it has.
        for seed in study.seeds:
            for arm in study.arms:
                if arm.name in study.asked:
                    evaluate_run(train(place, plan(place, arm, seed)))
    except Stopped as stopped:
        return stopped.code
    for path in write_outputs(study, finished_runs(place), output):
        print(path)
    return None


def write_outputs(study: Study, runs: Runs, output: Path) -> list[Path]:
    """quality.json, .csv, .md, seeds.csv, curves.csv and curves.png from finished runs; tables on standard output."""
    results = [read_arm(arm, seeds, study) for arm, seeds in runs.items()]
    rows, single = table_rows(results, study), seed_rows(results)
    points = [point for arm, seeds in runs.items() for point in curves(arm, seeds)]
    tables = readable(rows, study) | each_seed(single)
    for title, table in tables.items():
        print_table(title, table)
    paths = harness.write_results(
        NAME,
        rows,
        notes(study, single),
        output,
        where=_where(runs),
        to_read=harness.markdown_tables(tables),
        more={"seeds": single},
    )
    paths.append(harness.write_csv(output / "seeds.csv", single))
    paths.append(harness.write_csv(output / "curves.csv", points))
    if importlib.util.find_spec("matplotlib") is None:
        say("no plot: matplotlib is not installed; pip install 'transpooler[bench]' and run the command again")
        return paths
    from transpooler.benchmarks.quality.plots import write_plot

    title = f"{study.name}: {budget_text(study)} a run, {len({row['seed'] for row in single})} seed(s)"
    return [*paths, write_plot(rows, points, output / "curves.png", title)]


def _where(runs: Runs) -> dict[str, Any]:
    """Machine, date and commit of the table; commits and versions that the runs were trained with."""
    now = harness.environment()
    folders = sorted({folder for seeds in runs.values() for run in seeds.values() for folder in parts(run)})
    trained = [kind for folder in folders for kind in harness.made_with(environments(folder))]
    return {"date": now["date"], "table_commit": now["commit"]} | {
        **{key: now[key] for key in ("cpu", "cores", "memory_gib", "gpu")},
        "trained_with": harness.made_with(trained),
    }

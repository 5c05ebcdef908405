"""`transpooler bench speed` from end to end: measure, then table, files, plots and the paper's headline."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transpooler.benchmarks import harness
from transpooler.benchmarks.speed import architectures
from transpooler.benchmarks.speed.goals import judge_goals
from transpooler.benchmarks.speed.run import check_device, run_cells
from transpooler.benchmarks.speed.settings import (
    DAMAGED,
    PHASES,
    SETTINGS_FILE,
    Cell,
    Limits,
    Settings,
    keep_settings,
    read_cells,
)
from transpooler.benchmarks.speed.table import format_groups, make_rows, print_tables
from transpooler.common import UserError, read_json, say

NAME = "speed"


def bench_speed(
    names: Sequence[str],
    lengths: Sequence[int],
    settings: Settings,
    limits: Limits,
    folder: Path,
    phases: Sequence[str] = PHASES,
) -> None:
    """Measure the cells that are missing in `folder`, then print and write tables of all its cells."""
    for name in names:
        architectures.find_entry(name)
    architectures.check_overrides(names, settings.overrides)
    check_device(settings.device)
    keep_settings(folder, settings)
    # Short inputs first; what is compared is measured close together.
    cells = [
        Cell(architecture=name, length=n, phase=phase) for n in sorted(lengths) for phase in phases for name in names
    ]
    run_cells(cells, settings, limits, folder)
    for path in write_outputs(folder):
        print(path)


def write_outputs(folder: Path) -> list[Path]:
    """Print tables and write speed.json, .csv, .md and plots; returns the paths of the files."""
    cells = read_cells(folder)
    found = make_rows(cells)
    if not any(cell["status"] == "ok" for cell in cells):
        raise UserError(f"{folder}: no cell could be measured; see the notes in {folder / 'cells'}")
    lines = judge_goals(found)
    print_tables(found)
    print("\n".join(lines))
    settings = read_json(folder / SETTINGS_FILE, DAMAGED)
    measured = [cell["environment"] for cell in cells if "environment" in cell]
    where = harness.table_environment(measured[0], measured_with=measured)
    to_read = harness.markdown_tables(format_groups(found))
    paths = harness.write_results(NAME, found, _notes(settings, lines), folder, where=where, to_read=to_read)
    if importlib.util.find_spec("matplotlib") is None:
        say("no plots: matplotlib is not installed; pip install 'transpooler[bench]' and run the command again")
        return paths
    from transpooler.benchmarks.speed.plots import write_plots

    return [*paths, *write_plots(found, folder, _subtitle(cells, settings))]


def _notes(settings: dict[str, Any], lines: Sequence[str]) -> str:
    said = "".join(f"- {line}\n" for line in lines)
    return (
        f"Settings: {json.dumps(settings)}\n\n"
        "Medians. In brackets: cost of the group's Blockwise and vanilla over this, above 1 = cheaper; - = unknown. "
        "A document: beam search with target_tokens new tokens for each of the batch; a token: the mean time between "
        "two of them. Peaks: above what weights and optimizer hold, within one step. All columns and quartiles: "
        "`speed.csv`, `speed.json`.\n\n"
        f"{said}"
    )


def _subtitle(cells: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    where = next(cell["environment"] for cell in cells if cell["status"] == "ok")
    machine = (
        where["gpu"]
        if settings["device"] == "cuda"
        else f"{where['cpu']}, {settings['threads']} thread{'s' * (settings['threads'] > 1)}, {settings['clock']} time"
    )
    return (
        f"{machine}; {settings['precision']}, batch {settings['batch_size']}, {settings['target_tokens']} target "
        f"tokens, beam {settings['num_beams']}; {where['date'][:10]}, commit {where['commit']}"
    )

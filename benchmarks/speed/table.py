"""From cells to rows: one row an architecture and length, every cost beside its ratio to the group's baselines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transpooler.benchmarks.speed.architectures import BASELINES, ENTRIES
from transpooler.benchmarks.speed.settings import PHASES
from transpooler.common import print_table

Row = dict[str, Any]

COSTS = {
    "train_step_s": "train step",
    "train_gflop": "its FLOPs",
    "train_peak_mib": "train peak",
    "encoder_s": "encoder",
    "token_s": "token",
    "document_s": "document",
    "decoder_gflop": "decoder FLOPs",
    "decoder_attention_gflop": "of these attention",
    "decoder_token_read_mib": "read a token",
}
"""Column -> what readers are shown."""
RATIO_TO = ("blockwise", "vanilla")
UNITS = {"_s": ("s", "ms", 1000.0), "_mib": ("GiB", "MiB", 1024.0), "_gflop": ("TFLOP", "GFLOP", 1000.0)}


def make_rows(cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Make one row an architecture and length; a ratio is the baseline's cost over this one's: above 1 = cheaper."""
    merged: dict[tuple[str, int], Row] = {}
    for cell in cells:
        name, length = cell["architecture"], cell["length"]
        row = merged.setdefault((name, length), {"architecture": name, "group": ENTRIES[name].group, "length": length})
        row[f"{cell['phase']}_status"] = cell["status"]
        if cell["note"]:
            row[f"{cell['phase']}_note"] = cell["note"]
        numbers = {key: value for key, value in cell.items() if isinstance(value, int | float)}
        row.update({key: value for key, value in numbers.items() if key not in ("length", "repeats_asked")})
    order = list(ENTRIES)
    found = sorted(
        merged.values(), key=lambda row: (row["group"] == "deep", row["length"], order.index(row["architecture"]))
    )
    for row in found:
        _add_ratios(row, merged)
    return found


def _add_ratios(row: Row, merged: Mapping[tuple[str, int], Row]) -> None:
    for name, baseline in zip(RATIO_TO, BASELINES[row["group"]], strict=True):
        other = merged.get((baseline, row["length"]), {})
        for cost in COSTS:
            if row.get(cost) and other.get(cost):
                row[f"{cost}_vs_{name}"] = other[cost] / row[cost]


def format_groups(found: Sequence[Row]) -> dict[str, list[dict[str, str]]]:
    """Format a table for each group (title -> rows): costs, with their ratios to blockwise / vanilla in brackets."""
    tables = {}
    for group, baselines in BASELINES.items():
        members = [row for row in found if row["group"] == group]
        if members:
            tables[f"{group}: cost (times cheaper than {' / '.join(baselines)})"] = [
                {"architecture": row["architecture"], "tokens": f"{row['length']:,}"}
                | {heading: format_cost(row, cost) for cost, heading in COSTS.items()}
                for row in members
            ]
    return tables


def print_tables(found: Sequence[Row]) -> None:
    """Print the tables of all groups on standard output."""
    for title, table in format_groups(found).items():
        print_table(title, table, sections="tokens")


def format_cost(row: Mapping[str, Any], cost: str) -> str:
    """Format cost and ratios as '1.23 s (1.8/5.2)', or say why there is no cost."""
    if row.get(cost) is None:
        phase = PHASES[0] if cost.startswith("train") else PHASES[1]
        return str(row.get(f"{phase}_status", "")).replace("_", " ")
    ratios = [row.get(f"{cost}_vs_{name}") for name in RATIO_TO]
    shown = "/".join("-" if ratio is None else _digits(ratio, 2) for ratio in ratios)
    return f"{format_quantity(row[cost], cost)} ({shown})"


def format_quantity(value: float, cost: str) -> str:
    """Format a cost with its unit."""
    large, small, factor = next(unit for suffix, unit in UNITS.items() if cost.endswith(suffix))
    if cost.endswith("_s"):
        return f"{_digits(value, 3)} {large}" if value >= 1 else f"{_digits(value * factor, 3)} {small}"
    return f"{_digits(value / factor, 3)} {large}" if value >= factor else f"{_digits(value, 3)} {small}"


def _digits(value: float, count: int) -> str:
    """Format with `count` significant digits, but never round before the point."""
    return f"{value:,.0f}" if value >= 10 ** (count - 1) else f"{value:#.{count}g}".removesuffix(".")

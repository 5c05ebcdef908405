"""From cells to rows: one row an architecture and length, every cost beside its ratio to the group's baselines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transpooler.benchmarks.speed.architectures import BASELINES, ENTRIES
from transpooler.benchmarks.speed.settings import PHASES
from transpooler.common.tables import print_table

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


def rows(cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row an architecture and length; a ratio is the baseline's cost over this one's: above 1 = cheaper."""
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


def readable(found: Sequence[Row]) -> dict[str, list[dict[str, str]]]:
    """Title -> rows of one table a group: cost, and ratios to blockwise / vanilla behind it."""
    tables = {}
    for group, baselines in BASELINES.items():
        members = [row for row in found if row["group"] == group]
        if members:
            tables[f"{group}: cost (times cheaper than {' / '.join(baselines)})"] = [
                {"architecture": row["architecture"], "tokens": f"{row['length']:,}"}
                | {heading: cost_cell(row, cost) for cost, heading in COSTS.items()}
                for row in members
            ]
    return tables


def terminal_tables(found: Sequence[Row]) -> None:
    """Print them on standard output."""
    for title, table in readable(found).items():
        print_table(title, table, sections="tokens")


def cost_cell(row: Mapping[str, Any], cost: str) -> str:
    """'1.23 s (1.8/5.2)': cost and ratios; why there is none, where there is none."""
    if row.get(cost) is None:
        phase = PHASES[0] if cost.startswith("train") else PHASES[1]
        return str(row.get(f"{phase}_status", "")).replace("_", " ")
    ratios = [row.get(f"{cost}_vs_{name}") for name in RATIO_TO]
    shown = "/".join("-" if ratio is None else _digits(ratio, 2) for ratio in ratios)
    return f"{quantity(row[cost], cost)} ({shown})"


def quantity(value: float, cost: str) -> str:
    """A cost with its unit."""
    large, small, factor = next(unit for suffix, unit in UNITS.items() if cost.endswith(suffix))
    if cost.endswith("_s"):
        return f"{_digits(value, 3)} {large}" if value >= 1 else f"{_digits(value * factor, 3)} {small}"
    return f"{_digits(value / factor, 3)} {large}" if value >= factor else f"{_digits(value, 3)} {small}"


def _digits(value: float, count: int) -> str:
    """As many digits, and all those before the point."""
    return f"{value:,.0f}" if value >= 10 ** (count - 1) else f"{value:#.{count}g}".removesuffix(".")

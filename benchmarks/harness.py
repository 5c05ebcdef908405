"""What every benchmark shares: timing, peak memory, the record of where it ran, result files.

Only ratios within one run on one machine are comparable: `measure` alternates between the functions, so that other load
on the machine affects all of them alike, and reports medians with quartiles. It warms up first and waits for the GPU.
"""

import csv
import ctypes
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from transpooler.common import atomic_write, columns_of, resident_mib

RESULTS = Path("benchmarks/results")
"""Where committed results lie, seen from the root of a clone."""
PACKAGES = ("torch", "triton", "numpy", "transformers", "deepspeed")
MIB = 2**20


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median_s: float
    low_s: float
    """Lower quartile."""
    high_s: float
    """Upper quartile."""

    def columns(self, unit: str) -> dict[str, float]:
        """Median and quartiles as columns of a table; unit: s, or ms (to 0.1 microseconds)."""
        values = {"median": self.median_s, "low": self.low_s, "high": self.high_s}
        return {f"{name}_{unit}": round(1e3 * s, 4) if unit == "ms" else s for name, s in values.items()}


def measure(
    functions: Mapping[str, Callable[[], Any]],
    *,
    device: str = "cpu",
    repeats: int = 20,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Measure one call of each function at a time, in turns; the first `warm_up` turns do not count.

    clock: seconds on the CPU. On a shared machine use `time.process_time`, with one thread: idle ones spin and count.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            took_s = _seconds_cuda(function) if device == "cuda" else _seconds(function, clock)
            if turn >= warm_up:
                times[name].append(took_s)
    return {name: _timing(values) for name, values in times.items()}


def peak_memory_bytes(
    function: Callable[[], Any], device: str = "cpu", release: Callable[[], Any] = lambda: None
) -> int:
    """Measure how far memory rises during one call of `function`, in bytes, after a call to warm up and `release`.

    On the CPU this is resident memory (Linux), on a GPU what torch has allocated.
    """
    function()
    release()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _forget_peak()
    before_mib = resident_mib()
    function()
    return round(MIB * (high_water_mib() - before_mib))


def high_water_mib() -> float:
    """The peak of this process's resident memory in MiB, since its program or `peak_memory_bytes` began (Linux).

    `peak_resident_mib` knows neither beginning: it includes the peak of the process that started this one.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status has no VmHWM; memory is measured on Linux alone")
    return int(found[1]) / 1024


def environment() -> dict[str, Any]:
    """Describe where and with what this process measures: hardware, date, commit (+dirty: with changes), versions."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": gpu,
        "versions": versions,
    }


def group_environments(environments: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each different (commit, machine, versions) among the environments once, with the `count` of its occurrences."""
    kinds = [
        {key: found[key] for key in ("commit", "cpu", "gpu", "versions") if key in found} for found in environments
    ]
    return [{"count": kinds.count(kind)} | kind for number, kind in enumerate(kinds) if kind not in kinds[:number]]


def table_environment(machine: Mapping[str, Any], **measured: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The environment of a table of earlier measurements: its own date and commit, `machine`, and theirs.

    machine: an environment, of which the hardware is taken; measured: heading -> environments to group under it.
    """
    now, hardware = environment(), ("cpu", "cores", "threads", "memory_gib", "gpu")
    return {
        "date": now["date"],
        "table_commit": now["commit"],
        **{key: machine[key] for key in hardware if key in machine},
        **{heading: group_environments(each) for heading, each in measured.items()},
    }


def write_results(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    notes: str,
    folder: Path = RESULTS,
    *,
    where: Mapping[str, Any] | None = None,
    to_read: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `name`.json (where, and rows), .csv (rows) and .md (where, and `to_read`); returns their paths.

    where: default the environment of this process; to_read: Markdown, default a table of all columns; more: further
    entries of the .json.
    """
    where = environment() if where is None else where
    record = {"benchmark": name, "environment": where, **(more or {}), "rows": [dict(row) for row in rows]}
    paths = [folder / f"{name}{suffix}" for suffix in (".json", ".csv", ".md")]
    with atomic_write(paths[0]) as file:
        file.write(json.dumps(record, indent=1) + "\n")
    write_csv(paths[1], rows)
    facts = "\n".join(f"- {key}: {_flat(value)}" for key, value in where.items())
    table = markdown(rows) if to_read is None else to_read
    with atomic_write(paths[2]) as file:
        file.write(f"# {name}\n\n{facts}\n\n{table}\n{notes.rstrip()}\n")
    return paths


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure of matplotlib as PNG; the picture that was there stays until the new one is whole."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows, with a column for every key; returns the path."""
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, columns_of(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows as a table."""
    columns = columns_of(rows)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def markdown_tables(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Format title -> rows as sections with a table each."""
    return "\n".join(f"## {title}\n\n{markdown(table)}" for title, table in tables.items())


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_flat, value))
    return ", ".join(f"{key} {_flat(part)}" for key, part in value.items()) if isinstance(value, dict) else str(value)


def _timing(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return Timing(median, low, high)


def _seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    started = clock()
    function()
    return clock() - started


def _seconds_cuda(function: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _forget_peak() -> None:
    """Reset VmHWM (Linux, glibc), after returning free heap memory to the system: reusing it would not count."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    commit = _git("rev-parse", "--short=12", "HEAD")
    return commit + "+dirty" if commit != "unknown" and _git("status", "--porcelain") else commit


def _git(*arguments: str) -> str:
    """Run git on the clone that this code lies in; "unknown" for an installed copy."""
    code = Path(str(files("transpooler")))
    done = subprocess.run(["git", "ls-files", "--error-unmatch", "__init__.py"], cwd=code, capture_output=True)
    if done.returncode == 0:
        done = subprocess.run(["git", *arguments], cwd=code, capture_output=True)
    return done.stdout.decode().strip() if done.returncode == 0 else "unknown"

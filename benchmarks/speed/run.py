"""Runs cells one after the other, each in its own process under its limits, and remembers what is done."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transpooler.benchmarks.speed.settings import UNMEASURED, Cell, Limits, Settings, make_result, read_cell
from transpooler.common import UserError, progress, read_json, resident_mib, say, write_json

POLL_S = 0.1
UNMEASURABLE = ("out_of_memory", "time_limit")


def run_cells(cells: Sequence[Cell], settings: Settings, limits: Limits, folder: Path) -> None:
    """Measure the cells that have no result yet, one by one; each result is a file in folder/cells."""
    given_up: dict[tuple[str, str], str] = {}
    with progress("bench speed", len(cells)) as bar:
        for cell in cells:
            kind = (cell.architecture, cell.phase)
            if kind in given_up:
                result = make_result(cell, "skipped", given_up[kind])
                if find_result(cell, limits, folder) is None:
                    write_json(cell.path(folder), result)
            else:
                result = find_result(cell, limits, folder) or _run(cell, settings, limits, folder)
                if result["status"] in UNMEASURABLE:
                    given_up[kind] = f"{result['status']} at {cell.length} tokens"
            bar.advance(note=f"{cell.name}: {result['status']}")


def find_result(cell: Cell, limits: Limits, folder: Path) -> dict[str, Any] | None:
    """Read a cell's earlier result; None if it failed, or if more repeats or a wider limit are asked for now."""
    path = cell.path(folder)
    if not path.is_file():
        return None
    result = read_cell(path)
    if result["status"] == "ok" and _repeats(result) < limits.repeats:
        return None
    if result["status"] == "time_limit" and result["time_limit_s"] < limits.time_limit_s:
        return None
    if result["status"] == "out_of_memory" and _is_wider(limits.memory_limit_gib, result.get("memory_limit_gib")):
        return None
    return None if result["status"] in UNMEASURED else result


def _repeats(result: dict[str, Any]) -> int:
    """How many repeats a cell was asked for; results of older versions say only how many it had time for."""
    counts = [value for key, value in result.items() if key.endswith("_repeats")]
    return int(result.get("repeats_asked", min(counts, default=0)))


def _is_wider(now_gib: float, then_gib: float | None) -> bool:
    """Whether the limit is wider now; 0 stands for no limit, None for the machine's own."""
    return bool(then_gib) and (now_gib == 0 or now_gib > float(then_gib or 0))


def _run(cell: Cell, settings: Settings, limits: Limits, folder: Path) -> dict[str, Any]:
    path = cell.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    log = path.with_suffix(".log")
    request = {"cell": asdict(cell), "settings": asdict(settings), "limits": asdict(limits), "output": str(path)}
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads), "PYTHONSAFEPATH": "1"}
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "transpooler.benchmarks.speed.cell", json.dumps(request)],
            stdout=errors,
            stderr=errors,
            env=environment,
        )
        try:
            stopped = _watch(process, limits)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if path.is_file():
        log.unlink()
        return read_json(path)
    result = _explain_absence(cell, stopped, process.returncode, log, limits)
    write_json(path, result)
    return result


def _watch(process: subprocess.Popen, limits: Limits) -> str | None:
    """Wait for the cell; returns its status if it exceeded a limit, else None."""
    started = time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_S)
        if time.monotonic() - started > limits.time_limit_s:
            return "time_limit"
        if limits.memory_limit_gib and resident_mib(process.pid) > 1024 * limits.memory_limit_gib:
            return "out_of_memory"
    return None


def _explain_absence(cell: Cell, stopped: str | None, code: int | None, log: Path, limits: Limits) -> dict[str, Any]:
    """The result of a cell that wrote none itself."""
    if stopped is None and code != -signal.SIGKILL:
        lines = log.read_text(encoding="utf-8").strip().splitlines() or ["no message"]
        say(f"{cell.name}: failed: {lines[-1]} (all of it: {log})")
        return make_result(cell, "failed", lines[-1])
    log.unlink()
    if stopped == "time_limit":
        return make_result(cell, stopped, f"over {limits.time_limit_s:g} s", time_limit_s=limits.time_limit_s)
    if stopped is None:
        return make_result(cell, "out_of_memory", "killed by the system")
    note = f"over {limits.memory_limit_gib:g} GiB"
    return make_result(cell, stopped, note, memory_limit_gib=limits.memory_limit_gib)


def check_device(device: str) -> None:
    """UserError where the device is not there."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: no CUDA device on this machine; use --device cpu")

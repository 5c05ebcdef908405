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

import psutil

from transpooler.benchmarks.speed.settings import UNMEASURED, Cell, Limits, Settings, outcome, read_cell
from transpooler.common.errors import UserError
from transpooler.common.files import read_json, write_json
from transpooler.common.log import progress, say

POLL_S = 0.1
UNMEASURABLE = ("out_of_memory", "time_limit")


def run_cells(cells: Sequence[Cell], settings: Settings, limits: Limits, folder: Path) -> None:
    """Measure what is not measured yet; each result is a file in folder/cells, written as soon as it is there."""
    given_up: dict[tuple[str, str], str] = {}
    with progress("bench speed", len(cells)) as bar:
        for cell in cells:
            kind = (cell.architecture, cell.phase)
            if kind in given_up:
                result = outcome(cell, "skipped", given_up[kind])
                if known(cell, limits, folder) is None:
                    write_json(cell.path(folder), result)
            else:
                result = known(cell, limits, folder) or _run(cell, settings, limits, folder)
                if result["status"] in UNMEASURABLE:
                    given_up[kind] = f"{result['status']} at {cell.length} tokens"
            bar.advance(note=f"{cell.name}: {result['status']}")


def known(cell: Cell, limits: Limits, folder: Path) -> dict[str, Any] | None:
    """The cell's earlier result, unless it failed, was to be repeated less often, or met a limit that is wider now."""
    path = cell.path(folder)
    if not path.is_file():
        return None
    result = read_cell(path)
    if result["status"] == "ok" and _repeats(result) < limits.repeats:
        return None
    if result["status"] == "time_limit" and result["time_limit_s"] < limits.time_limit_s:
        return None
    if result["status"] == "out_of_memory" and _roomier(limits.memory_limit_gib, result.get("memory_limit_gib")):
        return None
    return None if result["status"] in UNMEASURED else result


def _repeats(result: dict[str, Any]) -> int:
    """How often a cell was to be measured (time may have allowed less); older results say only how often it was."""
    counts = [value for key, value in result.items() if key.endswith("_repeats")]
    return int(result.get("repeats_asked", min(counts, default=0)))


def _roomier(now_gib: float, then_gib: float | None) -> bool:
    """Whether the limit now is above the one then; 0 is none, None is the machine's own."""
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
    result = _without_result(cell, stopped, process.returncode, log, limits)
    write_json(path, result)
    return result


def _watch(process: subprocess.Popen, limits: Limits) -> str | None:
    """Wait for the cell; the status it gets if a limit ended it."""
    started, seen = time.monotonic(), psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(POLL_S)
        if time.monotonic() - started > limits.time_limit_s:
            return "time_limit"
        if limits.memory_limit_gib and _resident_gib(seen) > limits.memory_limit_gib:
            return "out_of_memory"
    return None


def _resident_gib(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**30
    except psutil.Error:  # it ended meanwhile
        return 0.0


def _without_result(cell: Cell, stopped: str | None, code: int | None, log: Path, limits: Limits) -> dict[str, Any]:
    """What to record of a cell that wrote nothing."""
    if stopped == "time_limit":
        log.unlink()
        return outcome(cell, stopped, f"over {limits.time_limit_s:g} s", time_limit_s=limits.time_limit_s)
    if stopped == "out_of_memory":
        log.unlink()
        note = f"over {limits.memory_limit_gib:g} GiB"
        return outcome(cell, stopped, note, memory_limit_gib=limits.memory_limit_gib)
    if code == -signal.SIGKILL:
        log.unlink()
        return outcome(cell, "out_of_memory", "killed by the system")
    lines = log.read_text(encoding="utf-8").strip().splitlines() or ["no message"]
    say(f"{cell.name}: failed: {lines[-1]} (all of it: {log})")
    return outcome(cell, "failed", lines[-1])


def check_device(device: str) -> None:
    """UserError where the device is not there."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: no CUDA device on this machine; use --device cpu")

"""`transpooler bench speed` from end to end: cells are processes that resume and meet their limits."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from transpooler.benchmarks.speed.run import find_result, run_cells
from transpooler.benchmarks.speed.settings import Cell, Limits, Settings
from transpooler.launch.cli import main

TINY = ("model.d_model=32", "model.num_heads=2", "model.ffn_dim=64", "model.block_size=16")
SETTINGS = Settings(target_tokens=4, num_beams=2, vocab_size=100, overrides=TINY)


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_with_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "speed", "--architectures", "blockwise,transpooler"]
    command += ["--lengths", "64", "--phases", "infer", "--target-tokens", "3", "--beams", "2", "--repeats", "2"]
    command += ["--threads", "1", "--output", str(tmp_path), *(part for item in TINY for part in ("--set", item))]
    first, second = (tmp_path / "cells" / f"{name}-64-infer.json" for name in ("blockwise", "transpooler"))
    program = [sys.executable, "-m", "transpooler", *command]
    killed = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not first.is_file():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not second.is_file()
    written = first.stat().st_mtime_ns
    assert main(command) == 0
    assert first.stat().st_mtime_ns == written
    _check_ratios(tmp_path, first, second)
    assert "small: cost" in capfd.readouterr().out
    assert (tmp_path / "cost-small.png").stat().st_size > 10_000
    assert main([*command, "--beams", "3"]) == 2
    assert "holds measurements with num_beams 2" in capfd.readouterr().err


def _check_ratios(folder: Path, first: Path, second: Path) -> None:
    """The table's numbers are the cells', and its ratios are what one divides by hand."""
    blockwise, transpooler = (json.loads(path.read_text()) for path in (first, second))
    assert blockwise["status"] == transpooler["status"] == "ok"
    table = {row["architecture"]: row for row in csv.DictReader((folder / "speed.csv").open())}
    for cost in ("encoder_s", "token_s", "document_s", "decoder_gflop"):
        ratio = float(table["transpooler"][f"{cost}_vs_blockwise"])
        assert ratio == pytest.approx(blockwise[cost] / transpooler[cost])
        assert float(table["blockwise"][f"{cost}_vs_blockwise"]) == 1
    assert "encoder_s_vs_vanilla" not in table["transpooler"]
    assert {"date", "commit", "cpu", "versions"} <= blockwise["environment"].keys()


@pytest.mark.slow
def test_a_cell_over_its_limits_is_recorded_and_longer_ones_are_left_out(tmp_path: Path) -> None:
    cells = [Cell(architecture="blockwise", length=length, phase="train") for length in (64, 128)]
    run_cells(cells, SETTINGS, Limits(time_limit_s=0.2), tmp_path)
    first, second = (json.loads(cell.path(tmp_path).read_text()) for cell in cells)
    assert (first["status"], first["note"]) == ("time_limit", "over 0.2 s")
    assert (second["status"], second["note"]) == ("skipped", "time_limit at 64 tokens")
    assert find_result(cells[0], Limits(time_limit_s=0.1), tmp_path)
    assert find_result(cells[0], Limits(time_limit_s=60), tmp_path) is None
    run_cells(cells[:1], SETTINGS, Limits(memory_limit_gib=0.01), tmp_path)
    assert json.loads(cells[0].path(tmp_path).read_text())["status"] == "out_of_memory"
    assert find_result(cells[0], Limits(memory_limit_gib=1), tmp_path) is None

"""A run under torch.compile: the losses of the eager one, killed and resumed without a trace. One real rank."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from transpooler.trainer.metrics import TIMED, read_metrics
from transpooler.trainer.run_folder import RunFolder

SETTINGS = [
    "data.batch_size=4",
    "engine={zero_stage: 1, micro_batch_size: 4}",
    "model={d_model: 32, num_heads: 2, ffn_dim: 64, block_size: 16, encoder_layers: 1, decoder_layers: 1, dropout: 0}",
    "model.pooling=[{after_layer: 1, length: 8}]",
    "train={steps: 12, checkpoint_every_steps: 4, evaluate_every_steps: 0, log_every_steps: 1, tensorboard: false}",
    "guards.watchdog_timeout_s=0",
]


@pytest.mark.slow
def test_a_compiled_run_equals_the_eager_one_and_survives_a_kill(tiny_settings, tmp_path):
    settings = [*tiny_settings, *SETTINGS]
    eager, compiled, killed = tmp_path / "eager", tmp_path / "compiled", tmp_path / "killed"
    _finish(settings, eager)
    settings.append("engine.compile=true")
    output = _finish(settings, compiled)
    assert "graph_break" not in output
    for row, expected in zip(read_metrics(compiled), read_metrics(eager), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=2e-5), (row["step"], row["split"])
        assert row["ledger" if row["split"] == "train" else "num_target_tokens"]

    process = _start(settings, killed)
    deadline = time.monotonic() + 600
    while not any(row["step"] >= 6 for row in read_metrics(killed)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert RunFolder(killed).checkpoint_steps()[-1] in (4, 8)
    _finish(settings, killed)
    rows, expected_rows = (
        [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(run)]
        for run in (killed, compiled)
    )
    assert rows == expected_rows


def _start(settings: list[str], run: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "transpooler.launch.train", *settings, f"run={run}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_LOGS": "graph_breaks,recompiles"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(settings: list[str], run: Path) -> str:
    process = _start(settings, run)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    (run / "log.txt").write_text(output)
    return output

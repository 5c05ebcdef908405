"""A run under torch.compile: the losses of the eager one, killed and resumed without a trace. One real rank."""

import time
from pathlib import Path

import forked
import pytest
import torch

from transpooler.trainer.metrics import TIMED, read_metrics
from transpooler.trainer.run_folder import RunFolder

DEADLINE_S = 900.0
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
    assert output.count("Graph break in user code") == 1, "the planted one alone"
    for row, expected in zip(read_metrics(compiled), read_metrics(eager), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=2e-5), (row["step"], row["split"])
        assert row["ledger" if row["split"] == "train" else "num_target_tokens"]

    job = _start(settings, killed)
    deadline = time.monotonic() + DEADLINE_S
    while not any(row["step"] >= 6 for row in read_metrics(killed)):
        assert job.processes[0].is_alive(), job.output()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.kill()
    job.codes()
    assert RunFolder(killed).checkpoint_steps()[-1] in (4, 8)
    _finish(settings, killed)
    rows, expected_rows = (
        [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(run)]
        for run in (killed, compiled)
    )
    assert rows == expected_rows


def _start(settings: list[str], run: Path) -> forked.Job:
    return forked.train(1, [*settings, f"run={run}"], run.with_suffix(".txt"), tell_of_compiling)


def tell_of_compiling() -> None:
    """In a rank: let torch tell of graph breaks, and plant one, which shows that it does."""
    torch._logging.set_logs(graph_breaks=True, recompiles=True)
    torch.compile(_broken, backend="eager")(torch.ones(2))


def _broken(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    torch._dynamo.graph_break()
    return y * 2


def _finish(settings: list[str], run: Path) -> str:
    job = _start(settings, run)
    assert job.codes(DEADLINE_S) == [0], job.output()[-3000:]
    return job.output()

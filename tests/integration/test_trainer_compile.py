"""A run of two budgets under torch.compile: the losses of the eager one, resumed without a trace. One real rank."""

from pathlib import Path

import forked
import pytest
import torch

from tests.run_folders import copy_up_to
from transpooler.trainer.metrics import TIMED, read_metrics

DEADLINE_S = 900.0
SETTINGS = [
    "data.batch_size=4",
    "engine={zero_stage: 1, micro_batch_size: 4}",
    "model={d_model: 32, num_heads: 2, ffn_dim: 64, block_size: 16, encoder_layers: 1, decoder_layers: 1, dropout: 0}",
    "model.pooling=[{after_layer: 1, length: [4, 8]}]",
    "train={steps: 12, checkpoint_every_steps: 4, evaluate_every_steps: 0, log_every_steps: 1, tensorboard: false}",
    "guards.watchdog_timeout_s=0",
]


@pytest.mark.slow
def test_a_compiled_run_equals_the_eager_one_and_is_resumed_to_the_same_bits(tiny_settings, tmp_path):
    settings = [*tiny_settings, *SETTINGS]
    eager, compiled, resumed = tmp_path / "eager", tmp_path / "compiled", tmp_path / "resumed"
    _finish(settings, eager)
    settings.append("engine.compile=true")
    output = _finish(settings, compiled)
    assert output.count("Graph break in user code") == 1, "the planted one alone"
    for row, expected in zip(read_metrics(compiled), read_metrics(eager), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=2e-5), (row["step"], row["split"])
        assert row["ledger" if row["split"] == "train" else "num_target_tokens"]

    copy_up_to(compiled, resumed, 8)
    assert "resumed at step 8" in _finish(settings, resumed)
    rows, expected_rows = (
        [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(run)]
        for run in (resumed, compiled)
    )
    assert rows == expected_rows


def tell_of_compiling() -> None:
    """In a rank: let torch tell of graph breaks, and plant one, which shows that it does."""
    torch._logging.set_logs(graph_breaks=True, recompiles=True)
    torch.compile(_broken, backend="eager")(torch.ones(2))


def _broken(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    torch._dynamo.graph_break()
    return y * 2


def _finish(settings: list[str], run: Path) -> str:
    job = forked.train(1, [*settings, f"run={run}"], run.with_suffix(".txt"), tell_of_compiling)
    assert job.codes(DEADLINE_S) == [0], job.output()[-3000:]
    return job.output()

"""One short run with all that it can log: metrics, TensorBoard, Weights & Biases offline, a profiler's trace."""

import json
from importlib.util import find_spec

import forked
import pytest

from tests.paths import ROOT
from transpooler.common import UserError
from transpooler.trainer.metrics import check_wandb, read_metrics

LOGGED = {
    *("loss", "learning_rate", "grad_norm", "step_time_s", "source_tokens_per_s", "data_wait_share", "padding_share"),
    *("model_tflops_per_s", "mfu", "epoch", "skipped_steps", "source_tokens", "target_tokens", "peak_memory_mib"),
    *("ledger", "pool0_mean_top_weight", "pool1_share_tenth9"),
}


def test_a_run_logs_all_that_the_table_promises(tiny_settings, tmp_path, monkeypatch):
    run = tmp_path / "run"
    more = [
        *(
            f"run={run}",
            "train.steps=6",
            "train.tensorboard=true",
            "train.profile_start_step=2",
            "train.profile_steps=2",
        ),
        *("engine.peak_tflops=0.1", "optimizer.name=adamw", "train.evaluate_every_steps=3"),
    ]
    if find_spec("wandb"):
        more.append("train.wandb_project=tests")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    job = forked.train(1, [*tiny_settings, *more], tmp_path / "log.txt")
    assert job.codes() == [0], job.output()[-3000:]

    rows = [row for row in read_metrics(run) if row["split"] == "train"]
    table = (ROOT / "trainer" / "README.md").read_text(encoding="utf-8")
    assert rows[-1].keys() >= LOGGED
    for row in rows:
        assert row["mfu"] == pytest.approx(row["model_tflops_per_s"] / 0.1)
        assert 0 < row["model_tflops_per_s"] < 0.1
    for name in {key for row in read_metrics(run) for key in row} - {"step", "split"}:
        generic = name if not name.startswith("pool") else f"pool<i>{name[5:].rstrip('0123456789')}"
        assert f"`{generic}" in table, f"{name} is not defined in trainer/README.md"
    assert list((run / "tensorboard").glob("events.*"))
    trace = json.loads((run / "profile" / "step2.json").read_text(encoding="utf-8"))
    names = {event["name"] for event in trace["traceEvents"]}
    assert "aten::addmm" in names or "aten::linear" in names
    if find_spec("wandb"):
        assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))


def test_weights_and_biases_must_be_there_when_asked_for(monkeypatch):
    monkeypatch.setattr("transpooler.trainer.metrics.find_spec", lambda name: None)
    check_wandb(None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'transpooler\[wandb\]'"):
        check_wandb("project")

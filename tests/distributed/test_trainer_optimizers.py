"""Every optimizer with every schedule, stopped in the middle and resumed on two real ranks: the same bits."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import get_default_build_root

from transpooler.common.errors import UserError
from transpooler.trainer.config import load_config
from transpooler.trainer.job import check_run_folder

STEPS, SAVED_AT = 6, 3
MUON = ["optimizer.name=muon", "optimizer.max_grad_norm=0", "optimizer.muon_learning_rate=0.01"]
FUSED = ["optimizer.name=fused_adamw"]
ON_CPU = ["engine.offload_optimizer=cpu"]
SETTINGS = ["train.evaluate_every_steps=0", f"train.steps={STEPS}", "model.dropout=0.1"]
CASES = {
    "zero0-adamw": ["engine.zero_stage=0", "optimizer.schedule=cosine"],
    "zero2-adamw": ["engine.zero_stage=2", "optimizer.schedule=polynomial", "optimizer.polynomial_power=2"],
    "zero3-adamw": ["engine.zero_stage=3", "optimizer.schedule=wsd", "optimizer.decay_steps=2"],
    "zero2-bf16": ["engine.zero_stage=2", "engine.precision=bf16", "optimizer.schedule=constant"],
    "zero1-fused": ["engine.zero_stage=1", *FUSED],
    "zero3-fused": ["engine.zero_stage=3", *FUSED],
    "zero2-offloaded": ["engine.zero_stage=2", *ON_CPU],
    "zero3-offloaded": ["engine.zero_stage=3", "engine.offload_parameters=cpu", *ON_CPU],
    **{f"zero{stage}-muon": [f"engine.zero_stage={stage}", *MUON] for stage in (1, 2, 3)},
}
WORKER = """
import json, shutil, sys, torch
from transpooler.trainer.config import load_config
from transpooler.trainer.engine.engine import gather_weights
from transpooler.trainer.job import prepare_job
from transpooler.trainer.step import train_step

def finished(settings, whole):
    job = prepare_job(load_config([], settings))
    start, seen = job.state.step, {"losses": [], "rates": []}
    for step, number in zip(job.loader.steps(start), range(start, job.config.train.steps)):
        result = train_step(job, step, stop=False)
        job.state.step += 1
        seen["losses"].append(result.loss_sum / result.target_tokens)
        seen["rates"].append([group["lr"] for group in job.engine.optimizer.param_groups])
        if whole and job.state.step == int(sys.argv[2]):
            job.save()
    items = dict(job.engine.module.named_parameters())
    with gather_weights(list(items.values())):
        seen["weights"] = {name: value.detach().clone() for name, value in items.items()}
    if job.rank == 0:
        torch.save(seen, job.run / ("whole.pt" if whole else "resumed.pt"))

for settings in json.loads(sys.argv[1]):
    finished(settings, whole=True)
    finished(settings, whole=False)
"""


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(tiny_settings, ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # Muon compiles its iteration, which takes longer than all the rest
    lock = _extensions() / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()  # as a build that was killed leaves it: torch would wait for ever
    runs = {name: tmp_path / name for name in CASES}
    each = [[*tiny_settings, *SETTINGS, f"run={runs[name]}", *more] for name, more in CASES.items()]
    for process in ranks(2, ["-c", WORKER, json.dumps(each), str(SAVED_AT)]):
        _, errors = process.communicate(timeout=1200)
        assert process.returncode == 0, errors[-3000:]
    for name, run in runs.items():
        whole, resumed = (torch.load(run / f"{kind}.pt", weights_only=True) for kind in ("whole", "resumed"))
        assert len(resumed["losses"]) == STEPS - SAVED_AT
        assert resumed["losses"] == whole["losses"][SAVED_AT:], name
        assert resumed["rates"] == whole["rates"][SAVED_AT:], name
        for key, value in whole["weights"].items():
            assert torch.equal(resumed["weights"][key], value), f"{name}: {key}"
    _refuses_another_optimizer(tiny_settings, runs["zero2-adamw"])
    _muon_is_not_cut_anew(tiny_settings, runs, ranks, tmp_path)


def _extensions() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def _refuses_another_optimizer(tiny_settings: list[str], run: Path) -> None:
    config = load_config([], [*tiny_settings, *SETTINGS, *FUSED, f"run={run}", "engine.zero_stage=2"])
    with pytest.raises(UserError, match=r"other values of optimizer.name"):
        check_run_folder(config, run)


def _muon_is_not_cut_anew(tiny_settings: list[str], runs: dict[str, Path], ranks, folder: Path) -> None:
    """Stages 1 and 2 keep the momentum of whole matrices: not one value per weight of the rank's slice."""
    run = folder / "one-rank"
    shutil.copytree(runs["zero2-muon"], run)
    settings = [*tiny_settings, *SETTINGS, *MUON, f"run={run}", "engine.zero_stage=2"]
    (process,) = ranks(1, ["-m", "transpooler.launch.train", *settings])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors[-3000:]
    assert "Muon's momentum cannot be cut for other ranks or another ZeRO stage; resume with 2 ranks" in errors

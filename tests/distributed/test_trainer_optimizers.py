"""Every optimizer with every schedule, stopped in the middle and resumed on two real ranks: the same bits."""

import os
import shutil
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from torch.utils.cpp_extension import get_default_build_root

from transpooler.common import UserError
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


def train_and_resume(each: list[list[str]]) -> None:
    """In a rank: train with each of the settings, saving in the middle; then resume from there."""
    torch.compiler.set_stance("force_eager")  # Muon compiles its iteration, which takes longer than all the rest
    for settings in each:
        _train(settings, whole=True)
        _train(settings, whole=False)


def _train(settings: list[str], whole: bool) -> None:
    from transpooler.trainer.job import prepare_job
    from transpooler.trainer.step import train_step

    job = prepare_job(load_config([], settings))
    start = job.state.step
    seen: dict[str, Any] = {"losses": [], "rates": []}
    for step, _ in zip(job.loader.steps(start), range(start, job.config.train.steps), strict=False):
        result = train_step(job, step, stop=False)
        assert result is not None
        job.state.step += 1
        seen["losses"].append(result.loss_sum / result.counts.target_tokens)
        seen["rates"].append([group["lr"] for group in job.engine.optimizer.param_groups])
        if whole and job.state.step == SAVED_AT:
            job.save()
    seen["weights"] = forked.whole_weights(job)
    if job.rank == 0:
        torch.save(seen, job.run / ("whole.pt" if whole else "resumed.pt"))


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(tiny_settings, tmp_path):
    lock = _extensions() / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()  # as a build that was killed leaves it: torch would wait for ever
    runs = {name: tmp_path / name for name in CASES}
    each = [[*tiny_settings, *SETTINGS, f"run={runs[name]}", *more] for name, more in CASES.items()]
    job = forked.Job(2, train_and_resume, (each,), tmp_path / "log.txt")
    assert job.codes(1200) == [0, 0], job.output()[-3000:]
    for name, run in runs.items():
        whole, resumed = (torch.load(run / f"{kind}.pt", weights_only=True) for kind in ("whole", "resumed"))
        assert len(resumed["losses"]) == STEPS - SAVED_AT
        assert resumed["losses"] == whole["losses"][SAVED_AT:], name
        assert resumed["rates"] == whole["rates"][SAVED_AT:], name
        for key, value in whole["weights"].items():
            assert torch.equal(resumed["weights"][key], value), f"{name}: {key}"
    _refuses_another_optimizer(tiny_settings, runs["zero2-adamw"])
    _muon_is_not_cut_anew(tiny_settings, runs, tmp_path)


def _extensions() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def _refuses_another_optimizer(tiny_settings: list[str], run: Path) -> None:
    config = load_config([], [*tiny_settings, *SETTINGS, *FUSED, f"run={run}", "engine.zero_stage=2"])
    with pytest.raises(UserError, match=r"other values of optimizer.name"):
        check_run_folder(config, run)


def _muon_is_not_cut_anew(tiny_settings: list[str], runs: dict[str, Path], folder: Path) -> None:
    """Stages 1 and 2 keep the momentum of whole matrices: not one value per weight of the rank's slice."""
    run = folder / "one-rank"
    shutil.copytree(runs["zero2-muon"], run)
    settings = [*tiny_settings, *SETTINGS, *MUON, f"run={run}", "engine.zero_stage=2"]
    job = forked.train(1, settings, folder / "one-rank.txt")
    assert job.codes(300) == [2], job.output()[-3000:]
    assert "Muon's momentum cannot be cut for other ranks or another ZeRO stage; resume with 2 ranks" in job.output()

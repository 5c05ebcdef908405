"""Resuming with other ranks and other ZeRO stages: states equal to the bit, then losses equal to rounding."""

import argparse
import shutil
from pathlib import Path

import forked
import pytest
import torch

from transpooler.trainer.checkpoint.reshard import SavedStates
from transpooler.trainer.checkpoint.safe_load import weights_only
from transpooler.trainer.config import load_config
from transpooler.trainer.metrics import read_metrics
from transpooler.trainer.run_folder import RunFolder

STAGES = (0, 1, 2, 3)
STEPS, SAVED_AT = 8, 6
COMMON = [
    "model.dropout=0",
    "model.exploration_noise=0.5",  # what a document draws does not depend on the rank that has it
    "optimizer.eps=0.001",  # far above rounding errors of the gradients: Adam would turn them into steps of full size
    f"train={{steps: {STEPS}, checkpoint_every_steps: 2, keep_last_checkpoints: 9, evaluate_every_steps: 0}}",
    "train.log_every_steps=1",
    "guards.watchdog_timeout_s=0",
]


@pytest.mark.slow
def test_other_ranks_and_other_stages(tiny_settings, tmp_path):
    base = [*tiny_settings, *COMMON]
    _each(1, base, [(None, tmp_path / f"w1s{stage}", stage) for stage in STAGES], tmp_path)
    expected = _losses(tmp_path / "w1s1")
    # 1 -> 2 ranks at every stage; what the two ranks save is then taken up by four, by one, and at other stages.
    _each(2, base, [(tmp_path / f"w1s{stage}", tmp_path / f"w2s{stage}", stage) for stage in STAGES], tmp_path)
    _each(4, base, [(tmp_path / f"w2s{stage}", tmp_path / f"w4s{stage}", stage) for stage in STAGES], tmp_path)
    changes = [(old, new) for old in STAGES for new in STAGES if abs(old - new) in (1, 3)]  # ... each of them twice
    _each(1, base, [(tmp_path / f"w2s{old}", tmp_path / f"w2s{old}w1s{new}", new) for old, new in changes], tmp_path)
    for run in sorted(tmp_path.glob("w*s*")):
        assert _losses(run) == pytest.approx(expected, abs=2e-5), run.name
    for run in sorted(tmp_path.glob("w?s?")):  # the others end as those of one rank do
        _assert_equals_universal(run, tmp_path)


def _each(world_size: int, base: list[str], runs: list[tuple[Path | None, Path, int]], folder: Path) -> None:
    """Train or resume each run (source, folder, stage) in turn, in one job."""
    for source, run, _ in runs:
        if source is not None:
            shutil.copytree(source, run, ignore=shutil.ignore_patterns("export", "global_step8"))
    settings = [[*base, f"run={run}", f"engine.zero_stage={stage}"] for _, run, stage in runs]
    job = forked.Job(world_size, _train_each, (settings, [source for source, *_ in runs]), folder / "log.txt")
    assert set(job.codes()) == {0}, job.output()


def _train_each(each: list[list[str]], sources: list[Path | None]) -> None:
    from transpooler.trainer.job import prepare_job
    from transpooler.trainer.train import _loop

    for settings, source in zip(each, sources, strict=True):
        job = prepare_job(load_config([], settings))
        groups = job.engine.optimizer.param_groups
        assert {(group["weight_decay"], group["lr_scale"]) for group in groups} == {(0.1, 1.0), (0.0, 1.0)}
        if source is not None:
            assert job.state.step == SAVED_AT
            job.saved_step = None
            job.save()  # what was dealt out, gathered again
            if job.rank == 0:
                _assert_same_states(RunFolder(job.run).checkpoint(SAVED_AT), RunFolder(source).checkpoint(SAVED_AT))
            torch.distributed.barrier()
        assert _loop(job)
        assert job.engine.global_steps == STEPS
        if job.metrics is not None:
            job.metrics.close()


def _assert_same_states(folder: Path, expected: Path) -> None:
    from transpooler.common import read_json

    ours, theirs = (SavedStates(each, read_json(each / "run.json")["optimizer_order"]) for each in (folder, expected))
    names = ours.model["module"].keys() - {"lm_head.weight"} & ours._pieces.keys()
    assert len(names) == len(theirs._pieces) > 60
    for name in names:
        (states, scalars), (expected_states, expected_scalars) = ours.parameter(name), theirs.parameter(name)
        assert states.keys() == expected_states.keys() == {"fp32", "exp_avg", "exp_avg_sq"}
        assert float(scalars["step"]) == float(expected_scalars["step"]) == SAVED_AT
        for key, value in expected_states.items():
            assert torch.equal(states[key], value), (name, key)


def _assert_equals_universal(run: Path, folder: Path) -> None:
    """DeepSpeed's own conversion of the checkpoint has the same numbers."""
    from deepspeed.checkpoint import ds_to_universal

    source = RunFolder(run).checkpoint(STEPS)
    if not list(source.glob("*_optim_states.pt")):
        return  # stage 0, which it does not convert
    output = folder / "universal"
    shutil.rmtree(output, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(source), output_folder=str(output), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=False,
    )  # fmt: skip
    with weights_only(source):
        ds_to_universal.main(arguments)
        ours = SavedStates(source, None)
        for name in ours._pieces:
            for key, value in ours.parameter(name)[0].items():
                theirs = torch.load(output / "zero" / name / f"{key}.pt")
                theirs = theirs["param"] if isinstance(theirs, dict) else theirs  # stages 1 and 2, stage 3
                assert torch.equal(theirs.flatten(), value), (run.name, name, key)


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run) if row["split"] == "train"]

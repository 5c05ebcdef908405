"""Stages of a run on two real ranks, ZeRO 0 to 3: what a plain loop computes, and the same bits wherever it stops."""

import os
import signal
import weakref
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file
from test_trainer_kills import assert_same
from torch.nn.utils import clip_grad_norm_

from tests.run_folders import copy_up_to
from tests.tiny import write_llama
from transpooler.data_pipeline.loading.loader import Loader
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.checkpoint.consolidate import consolidate_weights
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.engine.optimizer import learning_rate, parameter_groups, set_learning_rate
from transpooler.trainer.engine.parameters import freeze
from transpooler.trainer.weights.lora import add_lora
from transpooler.trainer.weights.models import build_model

SCORERS = "{steps: 2, freeze: ['*layers*', '*.shared.*'], learning_rate: 0.01, warmup_steps: 0}"
REST = "{freeze: ['*.poolers.1.*'], groups: [{match: '*.encoder.layers.*', learning_rate: 0.001, weight_decay: 0.5}]}"
STEPS, BORDER = 5, 2
TARGETS = "['*.q_proj', '*.decoder.*.fc_in']"
SETTINGS = [
    f"train={{steps: {STEPS}, checkpoint_every_steps: 1, keep_last_checkpoints: 9, evaluate_every_steps: 3}}",
    f"train.stages=[{SCORERS}, {REST}]",
    *("train.log_every_steps=1", "train.tensorboard=false", "optimizer.scorer_learning_rate_scale=2"),
    "optimizer.eps=0.001",  # far above rounding errors of the gradients: Adam would turn them into steps of full size
]
ENGINES = {
    "zero0": ["engine.zero_stage=0", "model.dropout=0"],
    "zero1": ["engine.zero_stage=1", "model.dropout=0", "engine.activation_checkpointing=deepspeed"],
    "zero2": ["engine.zero_stage=2", "model.dropout=0.1", "engine.precision=bf16"],
    "zero3": ["engine.zero_stage=3", "model.dropout=0", f"train.lora={{rank: 2, targets: {TARGETS}}}"],
}
ADAPTER = "{steps: 2, freeze: ['reader.*', 'encoder.stock.*', '*lora_*']}"
COMPRESSOR = [
    "model={kind: compressor, encoder_layers: 1, block_size: 32, pooling: [{after_layer: 1, ratio: 0.25}]}",
    f"train.stages=[{ADAPTER}, {{freeze: ['reader.*']}}]",
    "train.lora={rank: 2, dropout: 0.1, targets: ['reader.*.q_proj', 'reader.*.down_proj']}",
    *("engine.zero_stage=3", "engine.precision=bf16", "optimizer.warmup_steps=1"),
]
OTHER_STAGE = {"zero0": 3, "zero1": 0, "zero3": 2}


@pytest.mark.slow
def test_stages_are_what_a_plain_loop_computes_wherever_the_run_stops(tiny_settings, shards, tmp_path):
    each = {name: [*tiny_settings, *SETTINGS, *more] for name, more in ENGINES.items()}
    llama = write_llama(shards, tmp_path / "llama")
    basic = [entry for entry in tiny_settings if not entry.startswith("model")]
    each["compressor"] = [*basic, *SETTINGS, *COMPRESSOR, f"train.init_from={llama}"]
    runs = [[*settings, f"run={tmp_path / name}"] for name, settings in each.items()]
    killed = [*each["zero0"], f"run={tmp_path / 'zero0-killed'}"]
    log = tmp_path / "log.txt"
    job = forked.Job(2, train_each, ([*runs, killed],), log)
    assert job.codes(300)[1] == -signal.SIGKILL, job.output()[-3000:]
    runs = [killed]
    for name, settings in each.items():
        for step in (BORDER, BORDER + 1):
            copy_up_to(tmp_path / name, tmp_path / f"{name}-{step}", step)
            runs.append([*settings, f"run={tmp_path / f'{name}-{step}'}"])
    resumed = forked.Job(2, train_each, (runs,), log)
    runs = []
    for name, stage in OTHER_STAGE.items():
        copy_up_to(tmp_path / name, tmp_path / f"{name}-alone", BORDER + 1 if stage else BORDER)
        runs.append([*each[name], f"engine.zero_stage={stage}", f"run={tmp_path / f'{name}-alone'}"])
    alone = forked.Job(1, train_each, (runs,), tmp_path / "alone.txt")
    assert resumed.codes(300) == [0, 0], resumed.output()[-3000:]
    assert alone.codes(300) == [0], alone.output()[-3000:]
    assert_same(tmp_path / "zero0-killed", tmp_path / "zero0")
    for name in each:
        for step in (BORDER, BORDER + 1):
            assert_same(tmp_path / f"{name}-{step}", tmp_path / name)
    plain, adapted = (_plain(load_config([], each[name])) for name in ("zero0", "zero3"))
    for run in (*OTHER_STAGE, *(f"{name}-alone" for name in OTHER_STAGE)):
        for step, wanted in (adapted if run.startswith("zero3") else plain).items():
            if not run.endswith("alone") or step > BORDER + 1:
                _assert_close(consolidate_weights(tmp_path / run, step), wanted, f"{run}, step {step}")
    bf16 = consolidate_weights(tmp_path / "zero2", STEPS)
    assert {value.dtype for value in bf16.values()} == {torch.float32}
    assert bf16.keys() == plain[STEPS].keys()
    exports = [load_file(tmp_path / name / "export" / "model.safetensors").keys() for name in ENGINES]
    assert all(names == exports[0] for names in exports)
    _assert_reader(tmp_path / "compressor", llama)


def _assert_reader(run: Path, llama: Path) -> None:
    """What is not adapted is what it was; what is, is merged."""
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, run / "export" / "reader"))
    assert after.keys() == before.keys()
    changed = {name for name, value in before.items() if not torch.equal(value.bfloat16(), after[name].bfloat16())}
    assert changed == {name for name in before if name.endswith(("q_proj.weight", "down_proj.weight"))}


def train_each(each: list[list[str]]) -> None:
    """In a rank: train or resume each of the runs to its end; rank 1 of a new run named killed dies at the border."""
    from transpooler.trainer import job as jobs
    from transpooler.trainer.train import _finish, _loop

    open_engine = jobs.open_engine

    def die(config: Config, *args: Any) -> Any:
        if config.run.endswith("killed") and args[-1] == BORDER and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return open_engine(config, *args)

    for settings in each:
        job = jobs.prepare_job(load_config([], settings))
        if job.state.step == 0:
            setattr(jobs, "open_engine", die)  # noqa: B010
        weights, begins = _flat_weights(job.engine), job.state.step < BORDER
        assert _loop(job)
        assert not begins or {reference() for reference in weights} == {None}, "the first stage's engine is still there"
        _finish(job)
        if job.metrics is not None:
            job.metrics.close()


def _flat_weights(engine: Any) -> list[weakref.ref]:
    """References to the float32 weights of what the engine trains."""
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    flat = [tensor for name in names for tensor in getattr(engine.optimizer, name, ())]
    return [weakref.ref(tensor) for tensor in flat or engine.module.parameters()]


def _plain(config: Config) -> dict[int, dict[str, torch.Tensor]]:
    """Weights after each step of the textbook loop: one process, a new AdamW for each stage."""
    model = build_model(config, load_tokenizer(Path(config.data.shards) / "tokenizer"))
    if config.train.lora is not None:
        add_lora(model, config.train.lora, config.seed)
    batches = Loader(config.data, split="train", seed=config.seed, rank=0, world_size=1, micro_batch_size=5).steps(0)
    weights = {}
    for stage in config.stages:
        freeze(model, stage)
        optimizer = torch.optim.AdamW(parameter_groups(model, stage.optimizer), eps=stage.optimizer.eps)
        for step in range(stage.first, stage.last):
            (batch,) = next(batches).micro_batches
            set_learning_rate(
                optimizer.param_groups, learning_rate(step - stage.first, stage.optimizer, stage.last - stage.first)
            )
            optimizer.zero_grad()
            model(**batch).loss.backward()
            clip_grad_norm_(model.parameters(), stage.optimizer.max_grad_norm)
            optimizer.step()
            weights[step + 1] = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return weights


def _assert_close(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], where: str) -> None:
    assert weights.keys() == wanted.keys(), where
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, atol=2e-6, rtol=0, msg=f"{where}: {name}")

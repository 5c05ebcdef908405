"""Pooling operator x ZeRO stage x precision x kind of activation checkpointing: what is computed again is the same.

With dropout, on two real ranks. A step of Adam whose eps is huge is a multiple of the gradient, so equal weights after
it mean equal gradients. The loss is equal to the bit; gradients are to rounding, since layers that read one memory add
theirs in another order.
"""

from functools import partial
from pathlib import Path

import forked
import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from transpooler.model.ops.operators import OPERATORS
from transpooler.trainer.config import load_config

KINDS = {
    "none": [],
    "torch": ["engine.activation_checkpointing=torch"],
    "deepspeed": ["engine.activation_checkpointing=deepspeed"],
    "partitioned": [
        "engine.activation_checkpointing=deepspeed",
        "engine.deepspeed={activation_checkpointing: {partition_activations: true}}",
    ],
}
TORCH_TOO = {"successive_halving": ("torch",), "random": ("torch",)}
COMBINATIONS = [
    # An operator knows nothing of ZeRO: all of them where weights come and go, one where they stay. Nor of who computes
    # it again: torch does so for one with a scorer, and for the one that draws.
    *((operator, 3, "fp32", ("none", *TORCH_TOO.get(operator, ()), "deepspeed")) for operator in OPERATORS),
    ("successive_halving", 0, "fp32", ("none", "torch", "deepspeed")),
    *(("successive_halving", stage, "bf16", tuple(KINDS)) for stage in (1, 2, 3)),
]


def step_each(each: list[list[str]]) -> None:
    """In a rank: one step with each of the settings; saves loss, norm, weights and which layers were called."""
    from transpooler.trainer.job import prepare_job
    from transpooler.trainer.step import train_step

    for settings in each:
        job = prepare_job(load_config([], settings))
        calls = _note_calls(job.engine.module)
        torch.manual_seed(job.rank)
        result = train_step(job, next(job.loader.steps(0)), stop=False)
        assert result is not None
        weights = {name: value.float() for name, value in forked.whole_weights(job).items()}
        if job.rank == 0:
            job.run.mkdir(exist_ok=True)
            loss = result.loss_sum / result.counts.target_tokens
            seen = {"weights": weights, "loss": loss, "norm": result.gradient_norm, "calls": calls}
            torch.save(seen, job.run / "seen.pt")


def _note_calls(model: torch.nn.Module) -> list[str]:
    """The kinds of the checkpointed layers that run from now on, one entry a call."""
    calls: list[str] = []
    for module in model.modules():
        inside = next(module.children(), None) if isinstance(module, GradientCheckpointingLayer) else None
        if inside is not None:  # the layer's own hooks stand outside of its checkpoint
            note = partial(calls.append, type(module).__name__)
            inside.register_forward_pre_hook(lambda _, given, note=note: note())
    return calls


@pytest.mark.slow
def test_what_is_computed_again_is_the_same(tiny_settings, tmp_path):
    runs: dict[tuple[str, int, str, str], Path] = {}
    each: list[list[str]] = []
    for operator, stage, precision, kinds in COMBINATIONS:
        stages = (
            f"{{after_layer: {layer}, length: {length}, operator: {operator}}}" for layer, length in ((1, 32), (2, 8))
        )
        pooling = f"[{', '.join(stages)}]"
        for kind in kinds:
            run = runs[operator, stage, precision, kind] = tmp_path / f"{len(runs)}"
            fixed = [
                f"model.pooling={pooling}",
                "model.decoder_layers=2",
                "model.dropout=0.2",
                "model.exploration_noise=0.5",
                "optimizer.eps=1000",
                "optimizer.warmup_steps=0",
            ]
            fixed += [f"engine.zero_stage={stage}", f"engine.precision={precision}", f"run={run}"]
            each.append(
                [*tiny_settings, *fixed, "optimizer.learning_rate=100", "optimizer.weight_decay=0", *KINDS[kind]]
            )
    job = forked.Job(2, step_each, (each,), tmp_path / "log.txt")
    assert job.codes(400) == [0, 0], job.output()[-3000:]
    for (operator, stage, precision, kind), run in runs.items():
        what = f"{operator}, ZeRO {stage}, {precision}, {kind}"
        seen, plain = (torch.load(folder / "seen.pt") for folder in (run, runs[operator, stage, precision, "none"]))
        assert seen["loss"] == plain["loss"], what
        assert seen["norm"] == pytest.approx(plain["norm"], rel=1e-5 if precision == "fp32" else 2e-2), what
        assert plain["norm"] > 0
        for name, value in plain["weights"].items():
            tolerance = 1e-6 if precision == "fp32" else 4e-3
            torch.testing.assert_close(seen["weights"][name], value, atol=tolerance, rtol=0, msg=f"{what}: {name}")
        # Encoder layers, poolers and decoder layers all run a second time, and nothing does without checkpointing.
        scored = ("Pooler",) if OPERATORS[operator].needs_scores else ()  # the others have no module inside to watch
        for layer in ("EncoderLayer", *scored, "DecoderLayer"):
            times = 1 if kind == "none" else 2
            assert seen["calls"].count(layer) == times * plain["calls"].count(layer) > 0, f"{what}: {layer}"

"""ZeRO on two and four real ranks against one process and plain AdamW, step by step on the same weights."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from transpooler.data_pipeline.loading.loader import Loader
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.model.ops.schedule import OPERATOR_NAMES, WHOLE_OPERATORS
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.engine.optimizer import learning_rate, parameter_groups, set_learning_rate
from transpooler.trainer.weights.models import build_model

STEPS = 6
"""24 documents in batches of 5: the fifth step has four documents, the sixth begins the second epoch."""
# eps far above rounding errors of the gradients: Adam would turn them into steps of full size.
SETTINGS = [f"train.steps={STEPS}", "model.dropout=0", "optimizer.eps=0.001", "optimizer.max_grad_norm=0.5"]
MUON = ["optimizer.name=muon", "optimizer.max_grad_norm=0", "optimizer.muon_learning_rate=0.01"]
CHECKPOINTED = "engine.activation_checkpointing"
PARTITIONED = [
    f"{CHECKPOINTED}=deepspeed",
    "engine.deepspeed={activation_checkpointing: {partition_activations: true}}",
]


def zero(stage: int, micro: int, *more: str) -> list[str]:
    return [f"engine.zero_stage={stage}", f"engine.micro_batch_size={micro}", *more]


# Batches of 5 over 2 ranks: 3 + 2 documents in two micro batches (with a dummy) or in one.
ON_TWO = {
    **{f"zero{stage}, micro {micro}": zero(stage, micro) for stage in range(4) for micro in (2, 3)},
    **{f"zero{stage}, bf16": zero(stage, 2, "engine.precision=bf16") for stage in (1, 2, 3)},
    **{f"zero{stage}, fused": zero(stage, 2, "optimizer.name=fused_adamw") for stage in (1, 3)},
    "zero2, offloaded": zero(2, 2, "engine.offload_optimizer=cpu"),
    "zero3, all offloaded": zero(3, 2, "engine.offload_optimizer=cpu", "engine.offload_parameters=cpu"),
    **{f"zero{stage}, torch's": zero(stage, 2, f"{CHECKPOINTED}=torch") for stage in (1, 3)},
    **{f"zero{stage}, DeepSpeed's": zero(stage, 2, f"{CHECKPOINTED}=deepspeed") for stage in (0, 3)},
    **{f"zero{stage}, partitioned": zero(stage, 2, *PARTITIONED) for stage in (1, 3)},
}
WITH_MUON = {
    **{f"zero{stage}, micro 1, muon": zero(stage, 1, *MUON) for stage in (1, 2, 3)},
    **{f"zero{stage}, muon, bf16": zero(stage, 2, *MUON, "engine.precision=bf16") for stage in (1, 2, 3)},
}
# One rank of the four has two documents, the others one: micro batches of one make three ranks add a dummy.
ON_FOUR = {f"zero{stage}, micro 1": zero(stage, 1) for stage in range(4)}


def context(size: int, stage: int, *more: str) -> list[str]:
    return zero(stage, 2, f"engine.context_parallel_size={size}", *more)


def staged(operator: str) -> str:
    return f"model.pooling=[{{after_layer: 1, length: 32, operator: {operator}}}, {{after_layer: 2, ratio: 0.5}}]"


# Documents of 2 to 96 tokens in blocks of 16: ragged ones, those of one block, and ranks without any token.
CONTEXT_ON_TWO = {
    **{f"context, zero{stage}": context(2, stage) for stage in range(4)},
    **{f"context, zero{stage}, bf16": context(2, stage, "engine.precision=bf16") for stage in (1, 3)},
    **{f"context, zero{stage}, torch's": context(2, stage, f"{CHECKPOINTED}=torch") for stage in (1, 3)},
    **{f"context, zero{stage}, DeepSpeed's": context(2, stage, f"{CHECKPOINTED}=deepspeed") for stage in (0, 3)},
    **{
        f"context, {operator}": context(2, 1, staged(operator))
        for operator in OPERATOR_NAMES
        if operator not in (*WHOLE_OPERATORS, "random")
    },
    **{f"context, {kind}": context(2, 1, f"model.positions={kind}") for kind in ("learned", "relative", "rotary")},
    "context, restarting": context(2, 1, "model.positions=learned", "model.block_positions=block"),
}
CONTEXT_ON_FOUR = {
    **{f"context {size}, zero{stage}": context(size, stage) for size in (2, 4) for stage in (1, 3)},
    "context 4, one document": [*context(4, 1), "engine.micro_batch_size=1"],
}


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        pytest.param(2, ON_TWO, id="two ranks"),
        pytest.param(4, ON_FOUR, id="four ranks"),
        pytest.param(2, WITH_MUON, id="muon"),
        pytest.param(2, CONTEXT_ON_TWO, id="context, two ranks"),
        pytest.param(4, CONTEXT_ON_FOUR, id="context, four ranks"),
    ],
)
def test_every_setting_equals_one_process(world_size, cases, tiny_settings, tmp_path):
    """Uneven ranks, a smaller last batch, length buckets, accumulation and dummies all take part."""
    runs = {name: tmp_path / name.replace(" ", "_") for name in cases}
    each = {name: [*tiny_settings, *SETTINGS, f"run={runs[name]}", *more] for name, more in cases.items()}
    warm = _exported([*tiny_settings, "seed=7"], tmp_path / "other")
    stages_of_warm = (1, 3) if cases is ON_TWO else ()
    for stage in stages_of_warm:
        run = tmp_path / f"warm{stage}"
        more = [f"run={run}", f"engine.zero_stage={stage}", f"train.init_from={tmp_path / 'other'}", "train.steps=2"]
        each[f"warm{stage}"] = [*tiny_settings, *SETTINGS, *more]
    job = forked.Job(world_size, train_each, (list(each.values()),), tmp_path / "log.txt")
    assert set(job.codes(1200)) == {0}, job.output()[-3000:]
    for stage in stages_of_warm:
        initial = torch.load(tmp_path / f"warm{stage}" / "seen.pt", weights_only=True)["initial"]
        assert all(torch.equal(initial[name], value) for name, value in warm.items()), f"init_from at ZeRO {stage}"
    for name, run in runs.items():
        with torch.compiler.set_stance("force_eager"):
            of_model = [setting for setting in cases[name] if setting.startswith("model.")]
            expected = _plain((*tiny_settings, *SETTINGS, *(MUON if "muon" in name else []), *of_model))
        seen = torch.load(run / "seen.pt", weights_only=True)
        bf16 = "bf16" in name
        # Muon makes steps of full size of the smallest gradients too, and so of their rounding.
        tolerance = 2e-6 if not bf16 else 5e-2 if "muon" in name else 5e-3
        _assert_close(name, seen, expected, tolerance=tolerance, loss=0.05 if bf16 else 1e-5)
        _assert_exported(name, run, expected["weights"][-1], tolerance=tolerance)


def train_each(each: list[list[str]]) -> None:
    """In a rank: train with each of the settings, and save everything that the textbook loop has, too."""
    from transpooler.trainer.job import prepare_job
    from transpooler.trainer.step import held_out_loss, train_step

    torch.compiler.set_stance("force_eager")  # Muon compiles its iteration, which takes longer than all the rest
    for settings in each:
        config = load_config([], settings)
        job = prepare_job(config)
        seen: dict[str, Any] = {"initial": _float_weights(job), "losses": [], "norms": [], "weights": []}
        for step, _ in zip(job.loader.steps(0), range(config.train.steps), strict=False):
            result = train_step(job, step, stop=False)
            assert result is not None
            assert not result.skipped
            job.state.step += 1
            seen["losses"].append(result.loss_sum / result.counts.target_tokens)
            seen["norms"].append(result.gradient_norm)
            seen["weights"].append(_float_weights(job))
        seen["held_out"] = held_out_loss(job)[0]
        job.save()
        if job.rank == 0:
            torch.save(seen, job.run / "seen.pt")


def _float_weights(job: Any) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in forked.whole_weights(job).items()}


def _exported(settings: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """Export a model of other weights; returns them."""
    from transpooler.trainer.weights.export import export_model

    config = load_config([], settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    model = build_model(config, tokenizer)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    export_model(model, tokenizer, folder, config, step=0)
    return weights


def _assert_close(name: str, seen: dict, expected: dict, *, tolerance: float, loss: float) -> None:
    if "bf16" not in name:  # also where no rank ever held the whole model
        assert all(torch.equal(seen["initial"][key], value) for key, value in expected["initial"].items()), name
    for key in ("losses",) if "muon" in name else ("losses", "norms"):  # DeepSpeed's norm is that of Muon's updates
        assert seen[key] == pytest.approx(expected[key], abs=loss), f"{name}: {key}"
    assert seen["held_out"] == pytest.approx(expected["held_out"], abs=loss), name
    for step, (weights, wanted) in enumerate(zip(seen["weights"], expected["weights"], strict=True)):
        assert weights.keys() == wanted.keys()
        for key, value in wanted.items():
            message = f"{name}, step {step}: {key}"
            torch.testing.assert_close(weights[key], value, atol=tolerance, rtol=0, msg=message)


def _assert_exported(name: str, run: Path, expected: dict[str, torch.Tensor], tolerance: float) -> None:
    from transpooler.trainer.checkpoint.consolidate import consolidate_weights

    weights = consolidate_weights(run, STEPS)
    for key, value in expected.items():
        assert weights[key].dtype == torch.float32
        torch.testing.assert_close(weights[key], value, atol=tolerance, rtol=0, msg=f"{name}, checkpoint: {key}")


@cache
def _plain(settings: tuple[str, ...]) -> dict:
    """The textbook loop: one process, one batch, no ZeRO, AdamW or Muon. Everything that the ranks report."""
    config: Config = load_config([], settings)
    model = build_model(config, load_tokenizer(Path(config.data.shards) / "tokenizer"))
    chosen = config.optimizer
    groups = parameter_groups(model, chosen)
    if chosen.name == "muon":
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

        adam: dict[str, Any] = {"betas": chosen.betas, "eps": chosen.eps}
        own: dict[bool, dict[str, Any]] = {True: {"momentum": chosen.muon_momentum}, False: adam}
        optimizer: torch.optim.Optimizer = MuonWithAuxAdam([{**own[group["use_muon"]], **group} for group in groups])
    else:
        optimizer = torch.optim.AdamW(groups, betas=chosen.betas, eps=chosen.eps)
    initial = {name: value.detach().clone() for name, value in model.named_parameters()}
    seen: dict = {"initial": initial, "losses": [], "norms": [], "weights": []}

    def batches(split: str) -> Loader:
        return Loader(config.data, split=split, seed=config.seed, rank=0, world_size=1, micro_batch_size=5)

    for step, number in zip(batches("train").steps(0), range(STEPS), strict=False):
        (batch,) = step.micro_batches
        set_learning_rate(optimizer.param_groups, learning_rate(number, chosen, STEPS))
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        seen["norms"].append(float(clip_grad_norm_(model.parameters(), chosen.max_grad_norm or math.inf)))
        optimizer.step()
        seen["losses"].append(loss.item())
        seen["weights"].append({name: value.detach().clone() for name, value in model.named_parameters()})
    (held_out,) = (step.micro_batches[0] for step in batches("validation").evaluation_steps(None))
    with torch.no_grad():
        seen["held_out"] = model.eval()(**held_out).loss.item()
    return seen

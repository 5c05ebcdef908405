"""Learning rate, parameter groups, metrics, checkpoints' manifests, DeepSpeed's configuration: without DeepSpeed."""

import json

import pytest
import torch

from transpooler.common.errors import UserError
from transpooler.trainer.checkpoint import checkpoint
from transpooler.trainer.config import load_config
from transpooler.trainer.config.root import Config, OptimizerConfig
from transpooler.trainer.engine.engine import check_machine
from transpooler.trainer.engine.optimizer import GuardedAdamW, learning_rate, parameter_groups
from transpooler.trainer.engine.settings import NO_CLIPPING, deepspeed_config
from transpooler.trainer.metrics import MetricsWriter, read_metrics
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.state import TrainState


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("polynomial", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]),
        ("cosine", [0.5, 1.0, 1.0, 0.8682, 0.55, 0.2318]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 0.55]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rate(schedule, expected):
    config = OptimizerConfig(
        learning_rate=1.0, schedule=schedule, warmup_steps=2, decay_steps=2, final_learning_rate_ratio=0.1
    )
    rates = [learning_rate(step, config, total_steps=6) for step in range(6)]
    assert rates == pytest.approx(expected, abs=1e-4)
    assert learning_rate(6, config, total_steps=6) == pytest.approx(expected[-1] if schedule == "constant" else 0.1)


def test_what_decays_and_what_has_its_own_rate():
    from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration

    model = TranspoolerForConditionalGeneration(
        TranspoolerConfig(
            vocab_size=50, d_model=8, num_heads=1, ffn_dim=8, encoder_layers=1, decoder_layers=1, block_size=4,
            pooling=[{"after_layer": 1, "length": 4}],
        )
    )  # fmt: skip
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1, scorer_learning_rate_scale=5.0))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, plain, scorer = ({names[id(parameter)] for parameter in group["params"]} for group in groups)
    assert decay | plain | scorer == set(names.values())
    assert scorer == {f"model.encoder.poolers.1.scorer.{part}" for part in ("weight", "bias")}
    assert "model.shared.weight" in plain
    assert all(name.endswith("weight") and "norm" not in name for name in decay)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0, 5.0]
    parameter_groups(model, OptimizerConfig(name="muon"))
    assert {names[id(part)] for part in model.parameters() if vars(part)["use_muon"]} == decay


def test_a_gradient_that_is_not_finite_leaves_the_step_out():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = GuardedAdamW([weight], lr=0.1, max_grad_norm=1.0)
    weight.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer.step()
    assert optimizer.overflow
    assert torch.equal(weight, torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer.step()
    assert not optimizer.overflow
    assert not torch.equal(weight, torch.ones(3))


def test_metrics_of_a_resumed_run_are_those_of_an_undisturbed_one(tmp_path):
    writer = MetricsWriter(tmp_path, step=0, tensorboard=False)
    for step in (1, 2, 3):
        writer.write({"step": step, "split": "train", "loss": 1.0 / step})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "spl')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    MetricsWriter(tmp_path, step=2, tensorboard=False).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.jsonl:1: not valid JSON"):
        read_metrics(tmp_path)


def test_the_ledger_tells_orders_apart():
    states = [TrainState() for _ in range(3)]
    for state, batches in zip(states, ([["a", "b"], ["c"]], [["a"], ["b", "c"]], [["a", "b"], ["c"]]), strict=True):
        for keys in batches:
            state.record(keys)
    assert states[0].ledger == states[2].ledger != states[1].ledger


def test_a_damaged_checkpoint_is_found_out(tmp_path):
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / ".incomplete" / f"global_step{step}"
        folder.mkdir(parents=True)
        (folder / "weights.pt").write_bytes(b"12345678")
        checkpoint._publish(folder, RunFolder(tmp_path).checkpoint(step), {"state": {"step": step}}, {})
    assert checkpoint.newest_valid(tmp_path) == 2
    assert (tmp_path / "checkpoints" / "latest").read_text() == "global_step2"
    weights = RunFolder(tmp_path).checkpoint(2) / "weights.pt"
    weights.write_bytes(b"12345679")
    assert list(checkpoint.problems(weights.parent)) == ["weights.pt has changed"]
    assert checkpoint.newest_valid(tmp_path) == 1
    (RunFolder(tmp_path).checkpoint(1) / "manifest.json").unlink()
    with pytest.raises(UserError, match="none of its checkpoints is valid"):
        checkpoint.newest_valid(tmp_path)


def test_deepspeed_fragments_may_add_but_not_change():
    config = load_config(
        [], ["engine.deepspeed={zero_optimization: {reduce_bucket_size: 1000}}", "engine.zero_stage=2"]
    )
    merged = deepspeed_config(config, num_micro_batches=4, world_size=2)
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert merged["train_batch_size"] == 8
    assert deepspeed_config(load_config([], ["optimizer.max_grad_norm=0"]), 1, 1)["gradient_clipping"] == NO_CLIPPING
    for fragment, message in (
        ("{zero_optimization: {stage: 3}}", "engine.deepspeed.zero_optimization.stage is set by engine.zero_stage"),
        ("{optimizer: {type: Adam}}", "engine.deepspeed.optimizer is set by the optimizer section"),
        ("{bf16: {enabled: true}}", "engine.deepspeed.bf16.enabled is set by engine.precision"),
        (
            "{zero_optimization: {offload_optimizer: {device: cpu}}}",
            "offload_optimizer.device is set by engine.offload_",
        ),
        ("{zero_optimization: 3}", "engine.deepspeed.zero_optimization is 3, but zero_optimization.stage is set by"),
    ):
        with pytest.raises(UserError, match=message):
            deepspeed_config(load_config([], [f"engine.deepspeed={fragment}"]), 1, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can train in fp16")
def test_precision_that_this_machine_lacks():
    with pytest.raises(UserError, match="no CUDA device; use bf16 or fp32"):
        check_machine(load_config([], ["engine.precision=fp16"]).engine)


def test_configs_round_trip_and_bad_values_are_listed_together():
    config = load_config(["configs/deep_pyramidion.yaml"], ["train.steps=9000"])
    assert isinstance(config, Config)
    assert json.dumps(config.model.pooling[0].length) == "4096"
    with pytest.raises(UserError) as error:
        load_config([], ["engine.zero_stage=7", "train.steps=0"])
    assert "engine.zero_stage is 7; DeepSpeed knows 0, 1, 2 and 3" in str(error.value)
    assert "train.steps is 0" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            "engine.offload_optimizer=cpu engine.zero_stage=0",
            "engine.offload_optimizer is 'cpu', which needs engine.zero",
        ),
        ("engine.offload_parameters=cpu engine.zero_stage=2", "needs engine.zero_stage=3, not 2"),
        ("engine.offload_parameters=nvme engine.zero_stage=3", "engine.nvme_path is null"),
        ("engine.checkpoint_in_cpu=true", "needs engine.activation_checkpointing=deepspeed"),
        ("engine.compile=true engine.zero_stage=3", "engine.compile is true, but the weights"),
        (
            "engine.compile=true engine.activation_checkpointing=torch",
            "compile is true, but torch cannot compile checkpointed",
        ),
        ("optimizer.name=muon", "optimizer.max_grad_norm is 1.0, but with optimizer.name=muon"),
        ("optimizer.name=muon optimizer.max_grad_norm=0 engine.zero_stage=0", "which works under ZeRO only"),
        ("optimizer.name=adafactor", "optimizer.name is 'adafactor'; choose one of adamw, fused_adamw, muon"),
        ("optimizer.schedule=wsd train.steps=6000", "optimizer.decay_steps is 30000; with warmup_steps = 5000"),
        ("train.best_metric=rouge1", "which needs train.generate_documents above 0"),
        ("train.export_best=true", "needs train.keep_best_checkpoint=true"),
        ("train.patience=3 train.evaluate_every_steps=0", "need evaluations"),
        ("train.patience=3 data.validation_split=null", "data.validation_split is null"),
        ("train.generate_documents=9 data.objective=denoise", "needs data.objective=summarize"),
        (
            "model.positions=learned model.max_positions=100",
            "data.max_source_tokens is 8192, above model.max_positions",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings, problem):
    with pytest.raises(UserError) as error:
        load_config([], settings.split())
    assert problem in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="NVMe offload may work on this machine")
def test_nvme_offload_is_refused_where_it_hangs():
    settings = ["engine.offload_optimizer=nvme", "engine.nvme_path=/tmp", "engine.zero_stage=3"]
    with pytest.raises(UserError, match=r"hangs in DeepSpeed 0.19 without a CUDA device"):
        check_machine(load_config([], settings).engine)

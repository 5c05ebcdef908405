"""Parameter groups, the learning rate, the guarded AdamW, and the table of optimizers."""

import importlib
import os
import sys

import pytest
import torch

from transpooler.common import UserError
from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.config.optimizer import OPTIMIZERS, GroupConfig, OptimizerConfig
from transpooler.trainer.config.stages import Stage
from transpooler.trainer.engine.optimizer import (
    METHODS,
    GuardedAdamW,
    build_optimizer,
    learning_rate,
    operator_of,
    parameter_groups,
)
from transpooler.trainer.engine.parameters import check_patterns, freeze


def tiny_model() -> TranspoolerForConditionalGeneration:
    model = TranspoolerForConditionalGeneration(
        TranspoolerConfig(
            vocab_size=50, d_model=8, num_heads=1, ffn_dim=8, encoder_layers=1, decoder_layers=1, block_size=4,
            pooling=[{"after_layer": 1, "length": 4}],
        )
    )  # fmt: skip
    model.tie_weights()
    return model


def stage(freeze: tuple[str, ...] = ()) -> Stage:
    return Stage(number=0, first=0, last=1, freeze=freeze, optimizer=OptimizerConfig(), key="train")


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
    model = tiny_model()
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


def test_the_first_group_that_matches_decides_and_frozen_parameters_are_in_none():
    model = tiny_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = (
        GroupConfig(match="*.poolers.*", learning_rate=0.5),
        GroupConfig(match="model.encoder.*", learning_rate=0.25, weight_decay=0.0),
        GroupConfig(match="*", weight_decay=0.3),
    )
    settings = OptimizerConfig(learning_rate=0.5, weight_decay=0.1, scorer_learning_rate_scale=3.0, groups=groups)
    freeze(model, stage(freeze=("*.decoder.*", "lm_head.*")))  # the head is tied: one parameter of several names
    made = parameter_groups(model, settings)
    found = {names[id(item)]: (group["lr_scale"], group["weight_decay"]) for group in made for item in group["params"]}
    assert found["model.encoder.poolers.1.scorer.weight"] == (3.0, 0.0)
    assert found["model.encoder.layers.0.ffn.fc_in.weight"] == (0.5, 0.0)
    assert found["model.encoder.layers.0.ffn.fc_in.bias"] == (0.5, 0.0)
    assert not [name for name in found if "decoder" in name or "shared" in name]
    freeze(model, stage(freeze=("model.encoder.*",)))  # its embeddings are the decoder's, too
    made = parameter_groups(model, settings)
    assert {(group["lr_scale"], group["weight_decay"]) for group in made} == {(1.0, 0.3), (1.0, 0.0)}
    muon = OptimizerConfig(name="muon", learning_rate=0.5, muon_learning_rate=2.0, groups=groups[1:2])
    freeze(model, stage())
    assert {group["lr_scale"] for group in parameter_groups(model, muon)} == {0.5, 1.0, 2.0, 4.0}


def test_a_pattern_that_means_nothing_is_told_with_names_near_to_it():
    model = tiny_model()
    patterns = {"train.freeze": ("encoder.*", "lm_head.weight"), "optimizer.groups[1].match": ("*.pooler.*",)}
    with pytest.raises(UserError) as error:
        check_patterns(model, [stage(freeze=("*",))], patterns)
    first, second, third = str(error.value).splitlines()
    assert first.startswith("train.freeze: no parameter's name matches 'encoder.*'; near to it: model.encoder.*, ")
    assert second.startswith("optimizer.groups[1].match: no parameter's name matches '*.pooler.*'; near to it: ")
    assert third == "train.freeze is ['*'], which leaves no parameter to train; take a pattern away"
    check_patterns(model, [stage()], {"train.freeze": ("*",)})


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


def test_every_optimizer_of_the_configuration_can_be_built():
    offloaded = {(name, True) for name, traits in OPTIMIZERS.items() if traits.offloads}
    assert METHODS.keys() == {(name, False) for name in OPTIMIZERS} | offloaded


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_torchs_compiler_is_brought_along_for_muon_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("original_muon", "muon_optimizer"):
        monkeypatch.delitem(sys.modules, f"deepspeed.runtime.zero.muon.{module}", raising=False)
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 4)})
    build_optimizer(model, OptimizerConfig(name=name), EngineConfig())
    muon = importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    assert hasattr(muon.zeropower_via_newtonschulz5, "_torchdynamo_orig_callable") is (name == "muon")
    assert "TORCHDYNAMO_DISABLE" not in os.environ


def test_the_operator_that_must_be_compiled():
    on_cpu = EngineConfig(offload_optimizer="cpu")
    assert operator_of(OptimizerConfig(), EngineConfig()) is None
    assert operator_of(OptimizerConfig(), on_cpu) == "cpu_adam"
    assert operator_of(OptimizerConfig(name="fused_adamw"), EngineConfig()) == "fused_adam"
    assert operator_of(OptimizerConfig(name="muon"), EngineConfig()) is None

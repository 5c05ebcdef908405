"""LoRA: what stands beside the weights, what is trained, what an export holds."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.config.stages import LoraConfig
from transpooler.trainer.engine.parameters import check_patterns, freeze
from transpooler.trainer.estimate.memory import estimate_run
from transpooler.trainer.job import prepare_job
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.lora import add_lora, merge_lora
from transpooler.trainer.weights.models import build_model, load_model

LORA = "train.lora={rank: 3, alpha: 6, targets: ['*.q_proj', 'model.decoder.*.fc_in', '*.scorer'], dropout: 0.5}"
IDS = torch.randint(6, 250, (2, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def config(tiny_settings) -> Config:
    return load_config([], [*tiny_settings, LORA])


def build(config: Config) -> Any:
    return build_model(config, load_tokenizer(Path(config.data.shards) / "tokenizer"))


def adapt(model: Any, config: Config) -> Any:
    assert config.train.lora is not None
    add_lora(model, config.train.lora, config.seed)
    freeze(model, config.stages[0])
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, labels=IDS[:, :9]).logits


def test_factors_change_nothing_at_first_and_can_be_merged(config, tmp_path):
    plain, model = build(config), adapt(build(config), config)
    assert torch.equal(logits(model), logits(plain))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    trained = logits(model)
    assert (trained - logits(plain)).abs().max() > 0.01
    merge_lora(model)
    assert [*model.state_dict()] == [*plain.state_dict()]
    torch.testing.assert_close(logits(model), trained, atol=1e-6, rtol=0)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    export_model(model, tokenizer, tmp_path / "export", config, step=1)
    assert torch.equal(logits(load_model(tmp_path / "export")[0]), logits(model))


def test_what_is_trained(config, tiny_settings):
    model = adapt(build(config), config)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".base_layer." in name}
    first, last = (
        load_config([], [*tiny_settings, LORA, f"train.freeze={names}"]).stages[0]
        for names in ("['*']", "['*lora_B*']")
    )
    freeze(model, first)
    assert {name.split(".")[-3] for name, each in model.named_parameters() if each.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    freeze(model, last)
    assert not [name for name, each in model.named_parameters() if ".lora_B." in name and each.requires_grad]
    names = {"train.freeze": ("model.encoder.layers.0.attention.q_proj.weight", "*.q_proj.lora_A.weight")}
    check_patterns(model, config.stages, names)
    estimate = estimate_run(config, 1)
    freeze(model, config.stages[0])
    assert estimate.trained == (sum(each.numel() for each in model.parameters() if each.requires_grad),)
    assert estimate.parameters == sum(each.numel() for each in model.parameters())


def test_factors_depend_on_seed_and_name_alone(config):
    before = torch.get_rng_state()
    models = [adapt(build(config), config) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    for (name, first), second in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second), name
    factors = [each for name, each in models[0].named_parameters() if ".q_proj.lora_A." in name]
    assert not torch.equal(factors[0], factors[1])


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (("*.query",), r"no linear map matches '\*.query'; near to it: "),
        (("lm_head",), r"'lm_head' matches lm_head, whose weight is that of the embeddings"),
        (("model.shared",), r"no linear map matches 'model.shared'"),
    ],
)
def test_targets_that_cannot_be(config, targets, problem):
    with pytest.raises(UserError, match=problem):
        add_lora(build(config), LoraConfig(targets=targets), 0)
    with pytest.raises(UserError, match=r"train.lora.targets is empty; give patterns"):
        load_config([], ["train.lora={rank: 4}"])


def test_without_peft_one_line_names_the_extra(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"^train.lora is set, which needs peft; pip install 'transpooler\[lora\]'$"):
        prepare_job(config)

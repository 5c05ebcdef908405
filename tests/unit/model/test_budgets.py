"""Budgets: a schedule with several lengths or ratios, and models that keep as many tokens as they are told."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.model.architecture import Architecture
from transpooler.model.compressor.config import CompressorConfig
from transpooler.model.compressor.modeling import CompressorForConditionalGeneration
from transpooler.model.ops.schedule import pooling_stage, schedule_that_keeps, schedules
from transpooler.trainer.config import load_config
from transpooler.trainer.estimate.flops import document_work
from transpooler.trainer.step import schedule_of_step

THREE: list[dict[str, Any]] = [{"after_layer": 1, "length": 32}, {"after_layer": 2, "length": [4, 16, 8]}]
IDS = torch.randint(3, 99, (2, 60), generator=torch.Generator().manual_seed(0))


def kept_lengths(schedule: Any) -> list[int | float]:
    return [stage.budgets[0] for stage in schedule]


def seq2seq(pooling: list[dict[str, Any]]) -> TranspoolerForConditionalGeneration:
    torch.manual_seed(0)
    config = TranspoolerConfig(
        vocab_size=99, d_model=32, num_heads=2, ffn_dim=64, encoder_layers=2, decoder_layers=1, block_size=16,
        dropout=0.0, init_std=0.2, pooling=pooling,
    )  # fmt: skip
    return TranspoolerForConditionalGeneration(config).eval()


def compressor(pooling: list[dict[str, Any]]) -> CompressorForConditionalGeneration:
    torch.manual_seed(0)
    stock = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=99, pad_token_id=0
    )
    return CompressorForConditionalGeneration(
        CompressorConfig(encoder=stock.to_dict(), reader=stock.to_dict(), block_size=16, pooling=pooling)
    ).eval()


def test_budgets_go_from_the_largest_to_the_smallest() -> None:
    found = schedules([pooling_stage(stage) for stage in THREE])
    assert [kept_lengths(schedule) for schedule in found] == [[32, 16], [32, 8], [32, 4]]
    both: list[dict[str, Any]] = [{"after_layer": 1, "length": [16, 64]}, {"after_layer": 2, "length": [4, 8]}]
    assert [kept_lengths(each) for each in schedules([pooling_stage(stage) for stage in both])] == [[64, 8], [16, 4]]
    assert schedules([]) == [()]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(None, [32, 16]), (8, [32, 8]), (8.0, [32, 8]), (5, [32, 5]), (31, [32, 31]), (0.5, [32, 0.5])],
)
def test_a_budget_is_chosen_or_changes_the_last_stage(keep: float | None, expected: list[float]) -> None:
    assert kept_lengths(schedule_that_keeps([pooling_stage(stage) for stage in THREE], keep)) == expected


@pytest.mark.parametrize(
    ("keep", "problem"),
    [
        (32, r"keep is 32; must be below the stage before it \(32\); trained with 16, 8, 4"),
        (0, "keep is 0; must be at least 1"),
        (0.3, "keep is 0.3; must be 1/2, 1/4"),
        (float("nan"), "keep is nan; must be 1/2"),
        (2.5, "keep is 2.5; must be 1/2"),
    ],
)
def test_budgets_that_cannot_be_kept_are_named(keep: float, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        schedule_that_keeps([pooling_stage(stage) for stage in THREE], keep)
    with pytest.raises(ValueError, match="pools nothing"):
        schedule_that_keeps([], keep)


@pytest.mark.parametrize(
    ("pooling", "problem"),
    [
        ([{"after_layer": 1, "length": [8, 8]}], "pooling[0] names a budget twice: 8, 8"),
        ([{"after_layer": 1, "length": []}], "pooling has stages with 0 budgets"),
        ([{"after_layer": 1, "ratio": [0.5, 0.3]}], "pooling[0].ratio is 0.3; must be 1/2"),
        ([{"after_layer": 1, "length": [8, 4]}, {"after_layer": 2, "length": [3, 2, 1]}], "stages with 2, 3 budgets"),
        (
            [{"after_layer": 1, "length": [8, 4]}, {"after_layer": 2, "length": [2, 6]}],
            "must be below the stage",
        ),
    ],
)
def test_schedules_that_make_no_sense_are_refused(pooling: list[dict[str, Any]], problem: str) -> None:
    architecture = Architecture(pooling=tuple(pooling_stage(stage) for stage in pooling))
    assert problem in "; ".join(f"{key} {message}" for key, message in architecture.problems())


@pytest.mark.parametrize("build", [seq2seq, compressor])
def test_a_model_that_keeps_a_budget_computes_what_a_model_of_that_length_alone_computes(build) -> None:
    model = build(THREE)
    for keep in (None, 4, 8, 5):
        model.keep(keep)
        alone = build([THREE[0], {"after_layer": 2, "length": keep or 16}])
        alone.load_state_dict(model.state_dict())
        assert torch.equal(model(IDS, labels=IDS[:, :5]).logits, alone(IDS, labels=IDS[:, :5]).logits)
    model.keep()
    assert kept_lengths(model.stages) == [32, 16]


def test_all_budgets_are_saved_and_the_largest_is_loaded(tmp_path) -> None:
    model = seq2seq(THREE)
    model.keep(4)
    model.save_pretrained(tmp_path)
    again = TranspoolerForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.architecture == model.config.architecture
    assert kept_lengths(again.stages) == [32, 16]
    again.keep(4)
    assert torch.equal(again.eval()(IDS, labels=IDS[:, :5]).logits, model(IDS, labels=IDS[:, :5]).logits)


def test_each_step_draws_a_budget_from_seed_and_step_alone() -> None:
    pooling = "model.pooling=[{after_layer: 6, length: [256, 64]}]"
    drawn = [kept_lengths(schedule_of_step(load_config([], [pooling]), step))[0] for step in range(200)]
    assert drawn == [kept_lengths(schedule_of_step(load_config([], [pooling]), step))[0] for step in range(200)]
    assert 80 < drawn.count(64) < 120
    assert drawn != [kept_lengths(schedule_of_step(load_config([], [pooling, "seed=1"]), n))[0] for n in range(200)]


def test_work_is_that_of_the_largest_budget() -> None:
    model = load_config([], ["model.pooling=[{after_layer: 6, length: [64, 256]}]"]).model
    alone = load_config([], ["model.pooling=[{after_layer: 6, length: 256}]"]).model
    assert document_work(model, 1000, 2000, 50).total == document_work(alone, 1000, 2000, 50).total
    assert asdict(model)["pooling"][0]["length"] == (64, 256)

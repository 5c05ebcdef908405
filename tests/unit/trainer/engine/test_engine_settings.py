"""DeepSpeed's configuration from ours."""

from typing import Any

import pytest

from transpooler.common import UserError
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.engine.settings import NO_CLIPPING, deepspeed_config


def settings_of(config: Config, num_micro_batches: int, world_size: int) -> dict[str, Any]:
    return deepspeed_config(config.engine, config.optimizer, num_micro_batches, world_size)


def test_deepspeed_fragments_may_add_but_not_change():
    config = load_config(
        [], ["engine.deepspeed={zero_optimization: {reduce_bucket_size: 1000}}", "engine.zero_stage=2"]
    )
    merged = settings_of(config, num_micro_batches=4, world_size=2)
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert merged["train_batch_size"] == 8
    assert settings_of(load_config([], ["optimizer.max_grad_norm=0"]), 1, 1)["gradient_clipping"] == NO_CLIPPING
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
            settings_of(load_config([], [f"engine.deepspeed={fragment}"]), 1, 1)


def test_what_our_settings_do_not_own_is_passed_on():
    fragment = "engine.deepspeed={activation_checkpointing: {partition_activations: true}}"
    config = load_config([], ["engine.activation_checkpointing=deepspeed", fragment])
    expected = {"cpu_checkpointing": False, "partition_activations": True}
    assert settings_of(config, 1, 1)["activation_checkpointing"] == expected

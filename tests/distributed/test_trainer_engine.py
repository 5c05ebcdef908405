"""What reaches DeepSpeed, on real ranks: fragments of its configuration, and a model that no rank ever holds whole."""

from pathlib import Path
from typing import Any

import forked
import pytest

from transpooler.common import UserError
from transpooler.trainer.config import load_config

BAD = {
    "{zero_optimization: {overlap_com: true}}": "overlap_com: Extra inputs are not permitted",
    "{zero_optimization: {reduce_bucket_size: much}}": "reduce_bucket_size: Input should be a valid integer",
    "{communication_data_type: fp7}": "Invalid communication_data_type",
}


def test_a_fragment_reaches_deepspeed_or_is_refused(tiny_settings, tmp_path):
    settings = [*tiny_settings, "engine.zero_stage=2", f"run={tmp_path / 'run'}"]
    job = forked.Job(2, start, (settings,), tmp_path / "log.txt")
    assert job.codes() == [0, 0], job.output()


def start(settings: list[str]) -> None:
    """In a rank."""
    from transpooler.trainer.job import prepare_job

    for fragment, problem in BAD.items():
        with pytest.raises(UserError, match=f"^engine.deepspeed: DeepSpeed does not take it: {problem}"):
            prepare_job(load_config([], [*settings, f"engine.deepspeed={fragment}"]))
    config = load_config([], [*settings, "engine.deepspeed={zero_optimization: {reduce_bucket_size: 1234}}"])
    assert not Path(config.run).exists()
    engine: Any = prepare_job(config).engine
    assert engine.zero_reduce_bucket_size() == 1234


def test_at_stage_3_no_rank_holds_the_model(tiny_settings, tmp_path):
    job = forked.Job(2, build, ([*tiny_settings, "engine.zero_stage=3"],), tmp_path / "log.txt")
    assert job.codes() == [0, 0], job.output()


def build(settings: list[str]) -> None:
    """In a rank: every module's weights are cut as soon as it is made, so that the peak is one module's."""
    from transpooler.data_pipeline.tokenizer import load_tokenizer
    from transpooler.trainer.engine.distributed import init_distributed
    from transpooler.trainer.engine.engine import sharded_init
    from transpooler.trainer.engine.settings import deepspeed_config
    from transpooler.trainer.weights.models import build_model

    config = load_config([], settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    whole = dict(build_model(config, tokenizer).named_parameters())
    init_distributed(config.engine)
    sharded = sharded_init(config.engine, deepspeed_config(config.engine, config.optimizer, 1, 2))
    model: Any = build_model(config, tokenizer, sharded)
    for name, parameter in model.named_parameters():
        assert parameter.numel() == 0, name
        assert parameter.ds_shape == whole[name].shape
        assert parameter.ds_tensor.numel() == -(-whole[name].numel() // 2)

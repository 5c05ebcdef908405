"""engine.deepspeed on real ranks: what it adds reaches DeepSpeed, and what DeepSpeed does not take is one line."""

from pathlib import Path

import forked
import pytest

from common.errors import UserError
from trainer.config_loader import load_config

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
    from trainer.setup import prepare_job

    for fragment, problem in BAD.items():
        with pytest.raises(UserError, match=f"^engine.deepspeed: DeepSpeed does not take it: {problem}"):
            prepare_job(load_config([], [*settings, f"engine.deepspeed={fragment}"]))
    config = load_config([], [*settings, "engine.deepspeed={zero_optimization: {reduce_bucket_size: 1234}}"])
    assert not Path(config.run).exists()
    assert prepare_job(config).engine.zero_reduce_bucket_size() == 1234

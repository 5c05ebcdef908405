"""Spikes, odd ranks, durations, what stays of checkpoints, and files that are not ours: without DeepSpeed's engine."""

import pickle

import pytest
import torch

from transpooler.common import UserError, duration_s, format_duration
from transpooler.trainer.checkpoint import checkpoint
from transpooler.trainer.checkpoint.listing import describe
from transpooler.trainer.checkpoint.safe_load import load_file
from transpooler.trainer.config import load_config
from transpooler.trainer.guards.loss_spikes import MIN_HISTORY, is_spike, note_loss
from transpooler.trainer.guards.watchdog import odd_ranks
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.state import TrainState


def test_a_spike_is_far_above_what_was_usual():
    state = TrainState()
    for number in range(MIN_HISTORY):
        assert not is_spike(state, 1e6, 6.0)  # nothing is unusual yet
        note_loss(state, 3.0 + 0.1 * (-1) ** number)
    assert state.loss_mean == pytest.approx(3.0, abs=0.01)
    assert state.loss_variance == pytest.approx(0.01, rel=0.05)
    assert not is_spike(state, 3.55, 6.0)
    assert is_spike(state, 3.7, 6.0)
    assert not is_spike(state, 3.7, 0.0)
    assert not is_spike(state, float("nan"), 6.0)


def test_the_odd_rank_is_named():
    together = dict.fromkeys(range(4), (7, "step"))
    assert odd_ranks(together) == ""
    assert odd_ranks(together | {2: (7, "data")}) == "rank 2 (step 7, data) while 3 at step 7, step"
    assert odd_ranks({0: (7, "step"), 1: (7, "data")}) == "rank 1 (step 7, data) while 1 at step 7, step"
    assert odd_ranks({0: (7, "step"), 1: (6, "step")}).startswith("rank 1 (step 6, step)")


def test_durations():
    assert [duration_s(value) for value in (90, "90", "90m", "1h30m", "1d12h", "2h 5s")] == [
        90, 90, 5400, 5400, 129600, 7205,
    ]  # fmt: skip
    assert [duration_s(value) for value in ("", "soon", "1x")] == [None] * 3
    assert [format_duration(seconds) for seconds in (0, 45, 185, 90061)] == ["0 s", "45 s", "3 m 5 s", "1 d 1 h"]
    with pytest.raises(UserError, match=r"train.max_time is 'soon'; give seconds, or days, hours"):
        load_config([], ["train.max_time=soon"])
    assert load_config([], ["train.max_time=1h30m"]).train.max_time == "1h30m"


def test_which_checkpoints_go():
    steps = [2, 4, 6, 8, 10, 12]
    assert checkpoint.steps_to_remove(steps, 2) == [2, 4, 6, 8]
    assert checkpoint.steps_to_remove(steps, 2, keep_every=4) == [2, 6]
    assert checkpoint.steps_to_remove(steps, 1, keep=[10]) == [2, 4, 6, 8]
    assert checkpoint.steps_to_remove([2], 1) == []


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_wants_to_run_something_is_refused(tmp_path, legacy):
    path, trace = tmp_path / "mp_rank_00_model_states.pt", tmp_path / "executed"
    torch.save({"module": Evil(str(trace))}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"model_states.pt: refused, nothing of it was run.*io.open"):
        load_file(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the file was as evil as it says


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "random_rank0.pt"
    torch.save(torch.zeros(1000), path)
    for content in (path.read_bytes()[:700], b"", b"PK\x03\x04 junk", pickle.dumps({"a": 1})[:-1]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"random_rank0.pt: (cannot be read as a checkpoint of ours|refused)"):
            load_file(path)


def test_the_list_of_checkpoints(tmp_path):
    with pytest.raises(UserError, match="has no checkpoint yet"):
        describe(tmp_path, verify=False)
    for step in (8, 16, 24):
        folder = tmp_path / "checkpoints" / ".incomplete" / f"global_step{step}"
        folder.mkdir(parents=True)
        (folder / "weights.pt").write_bytes(bytes(2**20))
        facts = {"world_size": 4, "zero_stage": 2, "precision": "bf16", "state": {"step": step}}
        checkpoint._publish(folder, RunFolder(tmp_path).checkpoint(step), facts, {})
    (RunFolder(tmp_path).checkpoint(8) / "weights.pt").write_bytes(bytes(5))
    (RunFolder(tmp_path).checkpoint(16) / "weights.pt").write_bytes(b"1" + bytes(2**20 - 1))
    lines = [line.split(maxsplit=7) for line in describe(tmp_path, verify=False).splitlines()]
    assert lines[0] == ["step", "MiB", "age", "ranks", "ZeRO", "precision", "state"]
    assert [line[0] for line in lines[1:]] == ["8", "16", "24"]
    assert lines[1][-1].endswith("broken: weights.pt has 5 bytes instead of 1048576")
    assert lines[2][4:] == ["4", "2", "bf16", "complete"]
    assert lines[3][4:] == ["4", "2", "bf16", "complete (latest)"]
    verified = describe(tmp_path, verify=True).splitlines()
    assert verified[2].endswith("broken: weights.pt has changed")
    assert verified[3].endswith("valid (latest)")
    (RunFolder(tmp_path).checkpoint(24) / "manifest.json").write_text("[]")
    assert "manifest.json or run.json is not one of ours" in describe(tmp_path, verify=False)

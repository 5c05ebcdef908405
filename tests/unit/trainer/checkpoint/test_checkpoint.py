"""Manifests of checkpoints, without DeepSpeed."""

import json

import pytest

from transpooler.common import UserError
from transpooler.trainer.checkpoint import checkpoint
from transpooler.trainer.checkpoint.files import sync_and_hash
from transpooler.trainer.run_folder import RunFolder


def test_a_damaged_checkpoint_is_found_out(tmp_path):
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / ".incomplete" / f"global_step{step}"
        folder.mkdir(parents=True)
        (folder / "weights.pt").write_bytes(b"12345678")
        checkpoint._publish(folder, RunFolder(tmp_path).checkpoint(step), {"state": {"step": step}}, {})
    assert checkpoint.newest_valid(tmp_path) == 2
    assert (tmp_path / "checkpoints" / "latest").read_text() == "global_step2"
    facts = RunFolder(tmp_path).checkpoint(2) / "run.json"
    written = facts.read_text()
    for newer, what in (
        ('"format": 3', "is of format 3"),
        ('"format": 2, "state": {"step": 2, "pace": 1}', "knows pace"),
    ):
        old = '"format": 2' if "pace" not in newer else None
        facts.write_text(written.replace(old, newer) if old else f"{{{newer}}}")
        manifest = json.loads((facts.parent / "manifest.json").read_text())
        manifest["files"]["run.json"] = sync_and_hash(facts)
        (facts.parent / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=f"run.json: {what}, which this version does not; use the version"):
            checkpoint.newest_valid(tmp_path)  # the one before would lose steps
    facts.write_text(written)
    manifest["files"]["run.json"] = sync_and_hash(facts)
    (facts.parent / "manifest.json").write_text(json.dumps(manifest))
    weights = RunFolder(tmp_path).checkpoint(2) / "weights.pt"
    weights.write_bytes(b"12345679")
    assert list(checkpoint.problems(weights.parent)) == ["weights.pt has changed"]
    assert checkpoint.newest_valid(tmp_path) == 1
    (RunFolder(tmp_path).checkpoint(1) / "manifest.json").unlink()
    with pytest.raises(UserError, match="none of its checkpoints is valid"):
        checkpoint.newest_valid(tmp_path)

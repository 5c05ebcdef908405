"""Lines of metrics across kills and resumes."""

import shutil
import threading

import pytest

from transpooler.common import UserError
from transpooler.trainer.metrics import MetricsWriter, read_metrics


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
    for line in ('{"step": "1", "split": "train"}', '{"step": 1}', "7", "[]"):
        (tmp_path / "metrics.jsonl").write_text(f"{line}\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"metrics.jsonl:1: has no step and split, so no run wrote it"):
            read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'"\xff"\n7\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:1: not valid JSON"):
        read_metrics(tmp_path)


def test_tensorboard_goes_on_where_somebody_has_tidied_up(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # as launch.exits does
    writer = MetricsWriter(tmp_path, step=0, tensorboard=True)
    folder, step = tmp_path / "tensorboard", 1
    writer.write({"step": step, "split": "train", "loss": 1.0})
    _tidy_up(folder)
    while not folder.exists():
        step += 1
        writer.write({"step": step, "split": "train", "loss": 1.0})
    _tidy_up(folder)
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, step + 1))


def _tidy_up(folder):
    """Remove a folder in which a thread may be writing."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)

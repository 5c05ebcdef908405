"""Exit codes of what a disk does to a command, whichever library tells of it: real disks and limits, real libraries."""

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch.utils.tensorboard import SummaryWriter

from transpooler.common import write_json
from transpooler.launch.exits import run_guarded
from transpooler.trainer.checkpoint.files import RecordingFiles


@pytest.fixture
def limited() -> Iterator[None]:
    """No file may grow above 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_events(folder: Path) -> None:
    writer = SummaryWriter(str(folder))
    for number in range(500):
        writer.add_scalar("loss", number, number)
    writer.close()


WRITES = {
    "python": lambda path: path.write_text("x" * 2000),
    "ours": lambda path: write_json(path, "x" * 2000),
    "safetensors": lambda path: save_file({"a": torch.zeros(1000)}, path),
    "tokenizers": lambda path: Tokenizer(models.WordLevel({str(i): i for i in range(999)}, unk_token="0")).save(
        str(path)
    ),
    "tensorboard": write_events,
}


@pytest.mark.parametrize("library", WRITES)
def test_the_limit_of_a_files_size_is_one_line_and_exit_code_2(tmp_path, capfd, limited, monkeypatch, library):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    code = run_guarded(lambda: WRITES[library](tmp_path / "a"))
    assert code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("transpooler: error: ")
    assert "File too large; free space" in line


@pytest.mark.parametrize("folder", ["file", "loop", "x" * 300])
def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2(tmp_path, capsys, folder):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert run_guarded(lambda: (tmp_path / folder / "a").write_text("x")) == 2
    assert capsys.readouterr().err.startswith(f"transpooler: error: {tmp_path / folder}/a: ")


def test_other_exceptions_keep_their_traceback():
    with pytest.raises(FileNotFoundError):
        run_guarded(lambda: os.remove("/nowhere/at/all"))


def test_a_checkpoints_failures_are_kept_for_all_ranks(tmp_path, limited):
    """Weights, and whatever else DeepSpeed copies beside them: the other ranks wait at a barrier."""
    files = RecordingFiles(None)
    files.record(lambda: (tmp_path / "zero_to_fp32.py").write_text("x" * 2000))
    assert files.problem == "[Errno 27] File too large"
    files = RecordingFiles(None)
    files.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    assert files.problem

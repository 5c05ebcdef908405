"""Pictures and plans that are already there stay until new ones are whole, also where the disk refuses them."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transpooler.benchmarks.harness import save_figure
from transpooler.common import UserError
from transpooler.data_pipeline.prepare.assemble import _clear_unless


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_figure_is_whole_or_the_one_before(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2], [3, 1])
    assert save_figure(figure, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "a.png").read_bytes()
    with no_file_above(100), pytest.raises(UserError, match=r"a\.png: cannot write: File too large"):
        save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_full_disk_costs_no_finished_shards(tmp_path: Path) -> None:
    """The note beside them is not written again where it says the same."""
    folder, note = tmp_path / "train", tmp_path / "train.plan"
    _clear_unless(folder, note, "plan")
    (folder / "train-000000.tar").touch()
    with no_file_above(1):
        _clear_unless(folder, note, "plan")
    assert note.read_text() == "plan"
    assert os.listdir(folder) == ["train-000000.tar"]
    _clear_unless(folder, note, "other")
    assert (os.listdir(folder), note.read_text()) == ([], "other")

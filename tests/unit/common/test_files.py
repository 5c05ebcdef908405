"""Files are complete or absent."""

import json
import os
from pathlib import Path

import pytest

from transpooler.common import UserError, atomic_write, local_path, read_json, sha256_of, write_json


def test_a_written_file_is_complete_and_leaves_nothing_beside_it(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"ü": 1})
    assert read_json(tmp_path / "deep" / "a.json") == {"ü": 1}
    assert os.listdir(tmp_path / "deep") == ["a.json"]


def test_what_need_not_survive_a_power_failure_is_not_synced(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for durable, times in ((False, 0), (True, 2)):
        with atomic_write(tmp_path / "a.txt", durable=durable) as file:
            file.write("words")
        assert (len(synced), (tmp_path / "a.txt").read_text()) == (times, "words")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("half" * (1 // 0))
    assert json.loads(path.read_text()) == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_can_keep_what_it_has(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a", keep=True) as file:
        file.write(str(file.write("half") // 0))
    assert (tmp_path / "a.incomplete").read_text() == "half"
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "b", keep=True):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a.incomplete"]


def test_a_pipe_that_breaks_meanwhile_is_not_the_files_fault(tmp_path):
    with pytest.raises(BrokenPipeError), atomic_write(tmp_path / "a"):
        raise BrokenPipeError
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_user_error_that_names_the_file(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    (tmp_path / "a.incomplete").symlink_to("/dev/full")
    with (
        pytest.raises(UserError, match=r"/a: cannot write: No space left on device"),
        atomic_write(tmp_path / "a") as f,
    ):
        f.write("x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), atomic_write(tmp_path / "file" / "a"):
        pass


def test_broken_json_is_a_user_error_that_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json: cannot read"):
        read_json(tmp_path / "b.json")


def test_sha256_of_known_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/a", "/home/me/a"),
        ("./~/a", "~/a"),
        ("runs/~a", "runs/~a"),
        ("~nobody-has/a", "~nobody-has/a"),
        (Path("~/a"), "~/a"),
    ],
)
def test_what_a_leading_tilde_means(text, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path(text) == Path(path)

"""An export replaces only what an export made, as it made it; killed at any moment it leaves the old or the new one."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.launch.cli import main
from transpooler.trainer.config import load_config
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.models import build_model, load_model
from transpooler.trainer.weights.whole_folder import LIST, MARK, NEW, OLD, whole_folder


@pytest.fixture
def exported(tiny_settings, tmp_path):
    config = load_config([], tiny_settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")

    def export(step: int) -> None:
        export_model(build_model(config, tokenizer), tokenizer, tmp_path / "model", config, step=step)

    export(3)
    return export, tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add_note(folder: Path) -> None:
    (folder / "thesis.txt").write_text("precious")


def add_inside(folder: Path) -> None:
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / "deep" / "model.safetensors").write_text("precious")


def add_code(folder: Path) -> None:
    (folder / "mine.py").write_text("precious")


def add_link(folder: Path) -> None:
    add_note(folder.parent)
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)


def train_on(folder: Path) -> None:
    model = load_model(folder)[0]
    model.lm_head.weight.data.add_(1)
    model.save_pretrained(folder)


def edit_card(folder: Path) -> None:
    (folder / "README.md").write_text("my own words")


def without_list(change):
    def of_an_older_version(folder: Path) -> None:
        (folder / LIST).unlink()
        change(folder)

    return of_an_older_version


CHANGES = {
    "note": (add_note, "holds thesis.txt, which no export wrote"),
    "inside": (add_inside, "holds notes/deep/model.safetensors, which no export wrote"),
    "code": (add_code, "holds mine.py, which no export wrote"),
    "link": (add_link, "holds linked, which no export wrote"),
    "training": (train_on, "is not as it was exported"),
    "card": (edit_card, "README.md is not as it was exported"),
    "note in an older export": (without_list(add_note), "holds thesis.txt, which no export wrote"),
    "code in an older export": (without_list(add_code), "holds mine.py, which no export wrote"),
    "other model": (lambda folder: (folder / "config.json").write_text('{"model_type": "bart"}'), "no exported model"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_added_or_changed_is_not_lost(exported, tmp_path, change):
    export, folder = exported
    make, message = CHANGES[change]
    make(folder)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        export(4)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; move it, or choose another folder")
    assert contents(tmp_path) == before


def test_an_untouched_export_is_replaced(exported):
    export, folder = exported
    export(4)
    assert "trained for 4 steps" in (folder / "README.md").read_text()
    (folder / LIST).unlink()  # as older versions wrote it
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "modeling_transpooler.cpython-311.pyc").touch()
    export(5)
    assert "trained for 5 steps" in (folder / "README.md").read_text()
    assert {*json.loads((folder / LIST).read_text()), LIST} == contents(folder).keys()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "names",
    [["thesis.txt"], [MARK, "thesis.txt"], [MARK, "new/thesis.txt"], [MARK, "old/a/b.txt"], ["new/config.json"]],
)
def test_unfinished_work_is_ours_or_refused(exported, tmp_path, names):
    export, folder = exported
    for name in names:
        path = tmp_path / "model.incomplete" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"{folder}.incomplete: was not left by an export: it holds"):
        export(4)
    assert contents(tmp_path) == before


def test_a_file_that_comes_while_an_export_is_written_stays(exported):
    _, folder = exported
    with pytest.raises(UserError, match="holds thesis"), whole_folder(folder):
        add_note(folder)
    assert (folder / "thesis.txt").read_text() == "precious"
    other = folder.with_name("other")
    with pytest.raises(UserError, match="another export is writing it"), whole_folder(other), whole_folder(other):
        pass
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def killed_at(number: int, export) -> bool:
    """Whether an export in another process, killed at its rename `number`, came so far."""
    if (pid := os.fork()) == 0:
        rename, count = os.rename, 0

        def count_and_rename(source: Path, target: Path) -> None:
            nonlocal count
            if source.name in (NEW, "model"):
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
            rename(source, target)
            if count == 2 and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = count_and_rename  # type: ignore[assignment]
        export(4)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_kill_leaves_the_old_one_or_the_new_one_and_the_next_start_tidies_up(exported, number):
    export, folder = exported
    assert killed_at(number, export)
    work = folder.with_name("model.incomplete")
    step = 4 if number == 2 else 3
    assert f"trained for {step} steps" in ((work / OLD if number == 1 else folder) / "README.md").read_text()
    assert (work / NEW).exists() == (number < 2)
    with pytest.raises(RuntimeError), whole_folder(folder):  # a start that fails puts the old one back, too
        raise RuntimeError
    assert f"trained for {step} steps" in (folder / "README.md").read_text()
    assert killed_at(number, export)
    export(5)
    assert "trained for 5 steps" in (folder / "README.md").read_text()
    load_model(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_limit_of_the_disk_leaves_the_old_one(exported):
    export, folder = exported
    before, limits = contents(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write: File too large; free space"), whole_folder(folder) as new:
            (new / "config.json").write_text("x" * 9001)
        with pytest.raises(UserError, match=f"{folder}: a file cannot be written: File too large; free space"):
            export(4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder.parent) == {f"model/{name}": value for name, value in before.items()}


def test_a_folder_behind_a_link_and_the_own_folder(exported, tmp_path, monkeypatch, capsys):
    _, folder = exported
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    command = ["export", str(folder), "--output"]
    assert main([*command, str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").is_file()
    monkeypatch.chdir(tmp_path / "real")
    for name in (".", "..", "/"):
        assert main([*command, name]) == 2
        assert "is the folder in which this command runs" in capsys.readouterr().err
    (tmp_path / "loop").symlink_to("loop")
    assert main([*command, str(tmp_path / "loop")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_written_anew_holds_the_model_alone(exported, tmp_path, capsys):
    _, folder = exported
    shutil.copytree(folder, tmp_path / "saved")
    add_note(tmp_path / "saved")
    assert main(["export", str(tmp_path / "saved"), "--output", str(tmp_path / "more")]) == 0
    assert "saved: copies the model alone, not thesis.txt" in capsys.readouterr().err
    assert contents(tmp_path / "more").keys() == contents(folder).keys()
    assert main(["export", str(tmp_path / "saved"), "--output", str(tmp_path / "saved")]) == 2
    assert (tmp_path / "saved" / "thesis.txt").read_text() == "precious"


def test_weights_are_not_replaced_by_what_is_made_of_them(exported, capsys):
    _, folder = exported
    before = contents(folder)
    assert main(["adopt", str(folder), "--pooling", "1:8", "--output", str(folder)]) == 2
    assert "holds the weights themselves" in capsys.readouterr().err
    assert contents(folder) == before

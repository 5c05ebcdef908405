"""Which runs a configuration may continue."""

import pytest

from transpooler.common import UserError
from transpooler.trainer.config import load_config, save_config
from transpooler.trainer.job import _open_loaders, check_run_folder
from transpooler.trainer.run_folder import RunFolder


def test_a_run_folder_is_continued_by_its_own_configuration_only(tiny_settings, tmp_path):
    run = tmp_path / "run"
    config = load_config([], tiny_settings)
    check_run_folder(config, run)
    RunFolder(run).checkpoint(3).mkdir(parents=True)
    save_config(config, run / "config.yaml")
    check_run_folder(load_config([], [*tiny_settings, "train.steps=90", "optimizer.learning_rate=1"]), run)
    with pytest.raises(UserError, match=r"other values of seed, model.d_model"):
        check_run_folder(load_config([], [*tiny_settings, "seed=1", "model.d_model=64"]), run)
    with pytest.raises(UserError, match=r"holds a run already, and train.resume is false"):
        check_run_folder(load_config([], [*tiny_settings, "train.resume=false"]), run)


def test_settings_of_another_version_matter_only_where_they_decide_what_a_run_learns(tiny_settings, tmp_path):
    path, config = tmp_path / "config.yaml", load_config([], tiny_settings)
    RunFolder(tmp_path).checkpoint(3).mkdir(parents=True)
    save_config(config, path)
    saved = path.read_text()
    path.write_text(saved.replace("engine:\n", "engine:\n  retired: false\n"))
    check_run_folder(config, tmp_path)
    path.write_text(saved.replace("model:\n", "model:\n  gated: true\n"))
    with pytest.raises(
        UserError,
        match=r"config.yaml: has keys that this version does not know .model.gated.; use the version of transpooler",
    ):
        check_run_folder(config, tmp_path)


@pytest.mark.parametrize(("size", "says"), [(24, False), (1000, True)])
def test_a_batch_that_the_documents_cannot_fill_is_said(tiny_settings, capsys, size, says):
    _open_loaders(load_config([], [*tiny_settings, f"data.batch_size={size}"]), rank=0, world_size=1)
    warning = "WARNING: data.batch_size is 1000, but a step takes 24: there are no more documents"
    assert (warning in capsys.readouterr().err) == says

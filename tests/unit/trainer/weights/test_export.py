"""Exports, and mistakes around them: one line that names what and where, and nothing harmed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from transpooler.common import UserError
from transpooler.data_pipeline.text_tokens import head_of, leading_tokens
from transpooler.data_pipeline.tokenizer import fingerprint, load_tokenizer, train_tokenizer
from transpooler.launch.cli import main
from transpooler.trainer.config import load_config, save_config
from transpooler.trainer.weights.export import export_model, export_run
from transpooler.trainer.weights.models import build_model, load_model
from transpooler.trainer.weights.warm_start import start_from

WEIGHT = "model.encoder.layers.0.attention.out_proj.bias"


@pytest.fixture
def exported(tiny_settings, tmp_path):
    config = load_config([], tiny_settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    model = build_model(config, tokenizer)
    export_model(model, tokenizer, tmp_path / "export", config, step=3)
    return config, tokenizer, model, tmp_path / "export"


def test_an_export_loads_equal_and_says_what_it_is(exported):
    config, tokenizer, model, folder = exported
    loaded, its_tokenizer = load_model(folder)
    assert its_tokenizer.model_max_length == config.data.max_source_tokens
    assert fingerprint(its_tokenizer) == fingerprint(tokenizer)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert "32 after layer 1, 8 after layer 2" in (folder / "README.md").read_text(encoding="utf-8")
    assert not list(folder.parent.glob("*.incomplete"))
    stranger = AutoTokenizer.from_pretrained(folder)
    assert stranger("alpha beta").input_ids == [*tokenizer("alpha beta").input_ids, tokenizer.eos_token_id]
    raw, clean = "alpha\r\nbe\x00ta cafe\u0301 </s>", "alpha\nbeta caf\u00e9 </s>"  # read as it was prepared
    assert stranger(raw).input_ids == stranger(clean).input_ids
    assert stranger(clean).input_ids.count(tokenizer.eos_token_id) == 1
    assert leading_tokens(its_tokenizer, head_of(raw), 99).ids == leading_tokens(its_tokenizer, head_of(clean), 99).ids
    assert not {"is_local", "local_files_only"} & set(json.loads((folder / "tokenizer_config.json").read_text()))


def test_settings_of_another_version_are_told(exported, capsys):
    folder = exported[3]
    load_model(folder)
    assert "WARNING" not in capsys.readouterr().err
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"gated": True}))
    load_model(folder)
    assert "config.json: has settings that this version does not know (gated); if they" in capsys.readouterr().err


def test_a_folder_without_todays_code_is_written_anew(exported, tmp_path, capsys):
    """What the package's own classes save has no code, and says so; what an older version exported has other code."""
    _, tokenizer, model, folder = exported
    load_model(folder)[0].save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "transpooler_config.py").write_text("old")
    for output in (tmp_path / "new", tmp_path / "saved"):
        assert main(["export", str(tmp_path / "saved"), "--output", str(output)]) == 0
        assert torch.equal(load_model(output)[0].lm_head.weight, model.lm_head.weight)
        assert {path.name for path in output.glob("*.py")} == {path.name for path in folder.glob("*.py")}
        for name in ("config.json", "tokenizer.json"):
            assert json.loads((output / name).read_text()) == json.loads((folder / name).read_text())
    (tmp_path / "new" / "config.json").write_text('{"model_type": "bart"}')
    assert main(["export", str(tmp_path / "new"), "--output", str(tmp_path / "more")]) == 2
    assert "holds a 'bart' model" in capsys.readouterr().err
    assert not list(tmp_path.glob("more*"))


def test_weights_depend_on_the_seed_alone(exported):
    config, tokenizer, model, _ = exported
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = build_model(config, tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_fine_tuning_starts_from_what_fits(exported, tiny_settings, capsys):
    _, tokenizer, model, folder = exported
    other = build_model(load_config([], [*tiny_settings, "seed=5"]), tokenizer)
    start_from(other, folder, load_config([], tiny_settings), tokenizer)
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)
    changed = load_config([], [*tiny_settings, "model.pooling=[{after_layer: 2, length: 8}]"])
    start_from(build_model(changed, tokenizer), folder, changed, tokenizer)
    assert "poolers.1.scorer.weight" in capsys.readouterr().err


def test_fine_tuning_refuses_what_does_not_fit(exported, tiny_settings, tmp_path):
    _, tokenizer, model, folder = exported
    config = load_config([], [*tiny_settings, "model.ffn_dim=32"])
    with pytest.raises(UserError, match=r"model.ffn_dim is 32, in the weights 64; leave out"):
        start_from(model, folder, config, tokenizer)
    with pytest.raises(UserError, match="its tokenizer is not that of"):
        start_from(model, folder, config, train_tokenizer(iter(["other words"]), 300))
    with pytest.raises(UserError, match="no exported model there"):
        start_from(model, tmp_path / "absent", config, tokenizer)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot load the model"):
        load_model(folder)


def changed_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(WEIGHT), f"missing weights: {WEIGHT}; export it again"),
        (lambda weights: weights.update(more=torch.ones(2)), "unexpected weights: more; export it again"),
        (lambda weights: weights.update({WEIGHT: torch.ones(3)}), f"mismatched weights: {WEIGHT}; export it again"),
        (lambda weights: [weights.pop(name) for name in list(weights)[:9]], "and 6 more; export it again"),
    ],
)
def test_a_model_of_random_weights_is_refused(exported, capsys, change, message):
    folder = exported[3]
    changed_weights(folder, change)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert str(caught.value).startswith(f"{folder}: does not hold the model of its config.json: ")
    assert str(caught.value).endswith(message)
    assert "LOAD REPORT" not in "".join(capsys.readouterr())


def test_what_is_no_model_of_ours_is_refused(exported, tmp_path):
    _, tokenizer, _, folder = exported
    with pytest.raises(UserError, match=rf"{tmp_path}: a run folder, not an exported model; use {folder}$"):
        load_model(tmp_path)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"its tokenizer has (\d+) tokens, its model (\d+); export it again"):
        load_model(folder)
    for text, kind in (('{"model_type": "bart"}', "'bart'"), ("[]", "None")):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=f"holds a {kind} model, not one of transpooler"):
            load_model(folder)


def test_a_run_without_that_checkpoint_is_not_exported(exported, tmp_path):
    save_config(exported[0], tmp_path / "run" / "config.yaml")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        export_run(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match="has no checkpoint of step 7; it has none"):
        export_run(tmp_path / "run", tmp_path / "out", step=7)

"""Folders of pretrained weights as the world keeps them: older files, odd settings, mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from tests.stock_models import stock
from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import framing, load_tokenizer
from transpooler.trainer.config import load_config
from transpooler.trainer.weights.models import build_model
from transpooler.trainer.weights.warm_start import start_from


@pytest.fixture
def tokenizer(shards: Path):
    return load_tokenizer(shards / "tokenizer")


@pytest.fixture
def start(tiny_settings, tokenizer) -> Callable[..., tuple[Any, Any]]:
    kept = [each for each in tiny_settings if not each.startswith("model")]

    def begin(folder: Path, *more: str) -> tuple[Any, Any]:
        config = load_config([], [*kept, f"train.init_from={folder}", "model={block_size: null, pooling: []}", *more])
        model = build_model(config, tokenizer)
        start_from(model, str(folder), config, tokenizer)
        return config, model.eval()

    return begin


def edit(path: Path, **values: object) -> None:
    """Set keys of a JSON file; None takes them away."""
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@pytest.mark.parametrize("kind", ["bin", "old_bin", "sharded_bin", "sharded", "doubled", "half"])
def test_weights_are_found_in_every_kind_of_file(kind, start, tokenizer, tmp_path, capsys):
    theirs, folder = stock("bart", tokenizer, tmp_path / "bart"), tmp_path / "bart"
    weights = load_file(folder / "model.safetensors")
    if kind == "half":
        save_file({name: item.half() for name, item in weights.items()}, folder / "model.safetensors")
    elif kind == "doubled":
        save_file({name: item + 1 for name, item in weights.items()}, folder / "other.safetensors")
    else:
        (folder / "model.safetensors").unlink()
    if kind.endswith("old_bin") or kind == "bin":
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
    elif kind == "sharded":
        theirs.save_pretrained(folder, max_shard_size="20KB")
        save_file({name: item + 1 for name, item in weights.items()}, folder / "stale.safetensors")
        assert (folder / "model.safetensors.index.json").is_file()
    elif kind == "sharded_bin":
        halves = [dict(list(weights.items())[part::2]) for part in (0, 1)]
        for part, half in enumerate(halves):
            torch.save(half, folder / f"pytorch_model-{part}.bin")
        named = {name: f"pytorch_model-{part}.bin" for part, half in enumerate(halves) for name in half}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": named}))
    _, ours = start(folder)
    ids = torch.randint(6, 290, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (model(input_ids=ids, decoder_input_ids=ids[:, :5]).logits for model in (theirs, ours))
    torch.testing.assert_close(found, expected, atol=0.05 if kind == "half" else 1e-5, rtol=1e-5)
    assert "every tensor found its place" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"generation": None, "forced_bos_token_id": 7},
        {"generation": None, "force_bos_token_to_be_generated": True, "forced_bos_token_id": 0},
        {"generation": {"forced_eos_token_id": None}},
        {"generation": {"bad_words_ids": [[1], [8]]}},
        {"generation": {"suppress_tokens": [9, 8]}},
    ],
    ids=["config", "old_bart", "no_forced_end", "bad_words", "suppressed"],
)
def test_texts_begin_end_and_avoid_as_the_folder_says(change, start, tokenizer, tmp_path):
    """As `transformers` reads the same folder, also one without generation_config.json."""
    folder = tmp_path / "marian"
    stock("marian", tokenizer, folder)
    generation = change.pop("generation")
    if generation is None:
        (folder / "generation_config.json").unlink()
        edit(folder / "config.json", **change)
    else:
        edit(folder / "generation_config.json", **generation)
    theirs: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    config, ours = start(folder)
    ids = torch.randint(6, 290, (3, 30), generator=torch.Generator().manual_seed(0))
    settings = config.generation
    written = ours.generate(
        input_ids=ids,
        max_new_tokens=10,
        num_beams=2,
        forced_bos_token_id=settings.forced_bos_token_id,
        forced_eos_token_id=settings.forced_eos_token_id,
        suppress_tokens=list(settings.suppress_tokens) or None,
    )
    assert torch.equal(written, theirs.generate(input_ids=ids, max_new_tokens=10, num_beams=2))


def test_a_tokenizer_that_is_given_stands_for_one_that_is_not_there(start, tokenizer, tmp_path):
    stock("t5", tokenizer, tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "converted")
    for path in (tmp_path / "t5").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer here"):
        start(tmp_path / "t5")
    start(tmp_path / "t5", f"prepare.tokenizer.path={tmp_path / 'converted'}")


def test_a_table_grows_for_words_that_the_tokenizer_was_given(start, tokenizer, tmp_path, capsys):
    stock("t5", tokenizer, tmp_path / "t5")
    grown = load_tokenizer(tmp_path / "t5")
    grown.add_tokens([f"word{number}" for number in range(10)])
    grown.save_pretrained(tmp_path / "grown")
    config = load_config([], [f"train.init_from={tmp_path / 't5'}", f"prepare.tokenizer.path={tmp_path / 'grown'}"])
    model: Any = build_model(config, grown)
    start_from(model, str(tmp_path / "t5"), config, grown)
    assert model.config.vocab_size == len(grown) == len(tokenizer) + 10
    assert f"model.shared.weight[{len(tokenizer) + 3}:] start from random weights" in capsys.readouterr().err


def test_targets_of_barts_kin_begin_as_sources_do(start, tokenizer, tmp_path):
    stock("led", tokenizer, tmp_path / "led")
    framing(tokenizer, [tokenizer.bos_token_id]).save_pretrained(tmp_path / "led")
    config, _ = start(tmp_path / "led")
    assert config.data.source_prefix_ids == config.data.target_prefix_ids == (tokenizer.bos_token_id,)


def test_an_untied_umt5_reads_states_as_they_are(start, tokenizer, tmp_path):
    theirs, folder = stock("umt5", tokenizer, tmp_path / "umt5"), tmp_path / "umt5"
    weights = load_file(folder / "model.safetensors")
    assert start(folder)[0].seq2seq.logits_scale == pytest.approx(32**-0.5)
    head = torch.randn_like(theirs.shared.weight)
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    config, ours = start(folder)
    assert (config.seq2seq.tied_head, config.seq2seq.logits_scale) == (False, 1.0)
    assert torch.equal(ours.lm_head.weight, head)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("t5", ["model.relative_max_distance=16"], "model.relative_max_distance is 16, in the weights 20"),
        ("m2m_100", ["model.position_offset=0"], "model.position_offset is 0, in the weights 2"),
        ("t5", ["model.vocab_rows=50"], "in the weights 303"),
        ("t5", ["model.decoder_start_token_id=9999"], "model.decoder_start_token_id is 9999; the vocabulary has 303"),
        ("t5", ["generation=abc"], "generation"),
        ("t5", ["data=[1]"], "data"),
        ("t5", ["prepare=3"], "prepare"),
    ],
)
def test_contradictions_and_sections_of_a_wrong_type_take_one_line(name, settings, message, start, tokenizer, tmp_path):
    stock(name, tokenizer, tmp_path / name)
    with pytest.raises(UserError) as caught:
        start(tmp_path / name, *settings)
    assert message in str(caught.value)


def test_broken_folders_take_one_line(start, tokenizer, tmp_path):
    folder = tmp_path / "t5"
    stock("t5", tokenizer, folder)

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            start(folder)
        (line,) = str(caught.value).splitlines()
        return line

    config = (folder / "config.json").read_text()
    edit(folder / "config.json", d_model="32")
    assert f"{folder / 'config.json'}: " in refused()
    (folder / "config.json").write_text(config)
    weights = load_file(folder / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file(weights | {name: weights[name].to(torch.int8)}, folder / "model.safetensors")
    assert "is torch.int8: its weights are quantised" in refused()
    save_file(weights | {name: torch.ones(3, 4)}, folder / "model.safetensors")
    assert "(3, 4) there; give the config.json that belongs to the weights" in refused()
    (folder / "model.safetensors").write_bytes(b"half")
    assert "model.safetensors: cannot load the model" in refused()
    (folder / "model.safetensors").unlink()
    assert "has no weights (model.safetensors or pytorch_model.bin)" in refused()

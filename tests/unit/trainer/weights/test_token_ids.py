"""Settings that name tokens which the model does not have are refused by their names, before anything is computed."""

import shutil

import pytest
from transformers import GenerationConfig

from tests.tiny import write_llama
from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.launch.cli import main
from transpooler.trainer.config import load_config
from transpooler.trainer.evaluation.summarizer import load
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.models import build_model, load_model
from transpooler.trainer.weights.token_ids import needed_rows


@pytest.fixture
def tokenizer(shards):
    return load_tokenizer(shards / "tokenizer")


SETTINGS = (
    "data.source_prefix_ids=[{}]",
    "data.target_prefix_ids=[0,{}]",
    "generation.forced_bos_token_id={}",
    "generation.forced_eos_token_id={}",
    "generation.suppress_tokens=[4,{}]",
)


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_id_above_the_vocabulary_is_named(tiny_settings, tokenizer, shards, tmp_path, setting, capsys):
    key, rows = setting.partition("=")[0], len(tokenizer)
    build_model(load_config([], [*tiny_settings, setting.format(rows - 1)]), tokenizer)
    with pytest.raises(UserError, match=f"{key} has {rows}; the model's vocabulary has {rows} tokens"):
        build_model(load_config([], [*tiny_settings, setting.format(rows)]), tokenizer)
    with pytest.raises(UserError, match=rf"{key} is .*-1.*; must not be negative"):
        load_config([], [*tiny_settings, setting.format(-1)])
    export_model(
        build_model(load_config([], tiny_settings), tokenizer),
        tokenizer,
        tmp_path / "model",
        load_config([], tiny_settings),
        step=1,
    )
    (tmp_path / "c.yaml").write_text("{}")
    evaluate = ["evaluate", str(tmp_path / "c.yaml"), "--model", str(tmp_path / "model"), "--output", str(tmp_path)]
    assert main([*evaluate, *tiny_settings, setting.format(rows)]) == 2
    assert f"error: {key} has {rows}; the model's" in capsys.readouterr().err


def test_a_model_folder_that_would_write_what_it_does_not_know_is_refused(tiny_settings, tokenizer, tmp_path):
    config = load_config([], tiny_settings)
    export_model(build_model(config, tokenizer), tokenizer, tmp_path / "model", config, step=1)
    settings = GenerationConfig.from_pretrained(tmp_path / "model")
    settings.forced_eos_token_id = 9999
    settings.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"generation.forced_eos_token_id has 9999; the model's vocabulary has 300"):
        load(tmp_path / "model")


def test_a_compressor_has_the_words_of_its_tokenizer(shards, tmp_path, tokenizer):
    llama = write_llama(shards, tmp_path / "llama")
    pooling = "model.pooling=[{after_layer: 2, length: 8}]"
    settings = [f"train.init_from={llama}", f"data.shards={shards}", pooling, "model.encoder_layers=2"]
    config = load_config([], settings)
    model = build_model(config, tokenizer)
    assert model.config.vocab_size == model.config.encoder.vocab_size == len(tokenizer)
    export_model(model, tokenizer, tmp_path / "model", config, step=1)
    tokenizer.add_tokens(["one", "more"])
    assert needed_rows(tokenizer) == len(tokenizer)
    assert build_model(config, tokenizer).config.vocab_size == len(tokenizer)
    shutil.rmtree(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="its tokenizer has 302 tokens, its model 300"):
        load_model(tmp_path / "model")

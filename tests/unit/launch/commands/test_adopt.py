"""`transpooler adopt`: pretrained weights to a folder that other commands take, from disk and from a hub's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from tests.stock_models import stock, stock_causal
from transpooler.data_pipeline.loading.examples import ExampleMaker
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.tokenizer import framing, load_tokenizer
from transpooler.launch.cli import main
from transpooler.trainer.config import load_config
from transpooler.trainer.config.evaluation import GenerationConfig
from transpooler.trainer.evaluation.generate import source_ids
from transpooler.trainer.evaluation.summarizer import Summarizer
from transpooler.trainer.weights.models import load_model


@pytest.fixture
def bart(shards: Path, tmp_path: Path) -> Path:
    stock("bart", load_tokenizer(shards / "tokenizer"), tmp_path / "bart")
    return tmp_path / "bart"


def adopt(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["adopt", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_bart_becomes_a_pooling_model_that_summarizes(bart, tmp_path, capsys):
    output, document = tmp_path / "ours", tmp_path / "document.txt"
    document.write_text("alpha beta gamma delta " * 30)
    short = ("data.max_source_tokens=100", "data.max_target_tokens=20")
    options = ("--pooling", "1:12,2:0.5", "--block-size", "16", "--output", output)
    code, out, _ = adopt(capsys, bart, *options, *short)
    assert (code, out) == (0, f"{output}\n")
    values = json.loads((output / "config.json").read_text())
    assert [(stage["after_layer"], stage["length"], stage["ratio"]) for stage in values["pooling"]] == [
        (1, 12, None),
        (2, None, 0.5),
    ]
    assert (values["block_size"], values["d_model"], values["max_positions"]) == (16, 32, 100)
    card = (output / "README.md").read_text()
    assert "not trained yet" in card
    assert "Started from the weights of `bart`" in card
    assert main(["summarize", str(document), "--model", str(output), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_causal_language_model_becomes_a_reader(shards, tmp_path, capsys):
    folder, output = tmp_path / "llama", tmp_path / "ours"
    stock_causal(load_tokenizer(shards / "tokenizer"), folder)
    options = ("--pooling", "2:0.25", "--output", output, "model.encoder_layers=2")
    assert adopt(capsys, folder, *options)[0] == 0
    model, _ = load_model(output)
    assert model.config.encoder.num_hidden_layers == 2
    assert (output / "reader" / "config.json").is_file()


def test_the_weights_name_the_tokenizer_of_their_documents(bart):
    assert load_config([], [f"train.init_from={bart}"]).prepare.tokenizer.path == str(bart)
    own = load_config([], [f"train.init_from={bart}", "prepare.tokenizer.vocab_size=500"]).prepare.tokenizer
    assert (own.path, own.vocab_size) == (None, 500)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pooling", "6"], "'6' is not LAYER:KEEP, such as 6:512 or 6:0.25"),
        (["--pooling", "2:8,"], "'' is not LAYER:KEEP"),
        (["--pooling", "7:8"], "model.pooling[0].after_layer is 7; must lie in 1..2"),
        (["--pooling", "2:1.5"], "model.pooling[0].ratio is 1.5"),
        (["model.ffn_dim=7"], "model.ffn_dim is 7, in the weights 48; leave out what the weights decide"),
        (["model.kind=compressor"], "holds a 'bart' model, which is no causal language model"),
    ],
)
def test_mistakes_take_one_line_and_leave_nothing(bart, tmp_path, capsys, arguments, message):
    try:
        code, _, err = adopt(capsys, bart, "--output", tmp_path / "ours", *arguments)
    except SystemExit as error:
        code, err = int(str(error.code)), capsys.readouterr().err
    assert code == 2
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "ours").exists()


def test_weights_that_are_not_there(tmp_path, capsys):
    code, _, err = adopt(capsys, tmp_path / "nothing", "--output", tmp_path / "ours")
    assert code == 2
    assert "no exported model there" in err


def test_a_repository_of_the_hub_is_found_in_its_cache_and_its_absence_said(bart, tmp_path):
    """No network here: the cache is laid out as a download leaves it."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--small-bart"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir()
    bart.rename(repository / "snapshots" / revision)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "transpooler", "adopt", name, "--output", str(tmp_path / "ours")]
        return subprocess.run(
            [*command, "data.max_source_tokens=60", "data.max_target_tokens=20"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    found, absent = run("someone/small-bart"), run("someone/else")
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "ours" / "model.safetensors").is_file()
    assert absent.returncode == 2
    assert "someone/else: no such folder, and the hub does not give it" in absent.stderr.splitlines()[-1]


def test_sources_begin_as_the_weights_tokenizer_begins_them(bart, tmp_path, capsys):
    """A BART's with <s>: in training, in evaluation, in `summarize`, and by the export's own tokenizer."""
    framing(load_tokenizer(bart), [0]).save_pretrained(bart)
    more = ("data.max_source_tokens=40", "data.max_target_tokens=20")
    config = load_config([], [f"train.init_from={bart}", *more])
    assert config.data.source_prefix_ids == config.data.target_prefix_ids == (0,)
    tokenizer = load_tokenizer(bart)
    document = Document("key", np.arange(6, 9), np.arange(20, 23), {})
    assert source_ids(document, tokenizer, config) == [0, 6, 7, 8, 2]
    source, target = ExampleMaker(config.data, tokenizer, 0).example(document, "key", 0)
    assert (source.tolist(), target.tolist()) == ([0, 6, 7, 8, 2], [0, 20, 21, 22, 2])
    assert adopt(capsys, bart, "--output", tmp_path / "ours", *more)[0] == 0
    model, own = load_model(tmp_path / "ours")
    (summary,) = Summarizer(model, own, GenerationConfig(max_new_tokens=2)).summarize("alpha beta", progress=False)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours", trust_remote_code=True)
    assert exported("alpha beta").input_ids == summary.read_ids
    assert (summary.read_ids[0], summary.read_ids[-1]) == (0, 2)
    assert main(["export", str(tmp_path / "ours"), "--output", str(tmp_path / "again")]) == 0
    assert load_tokenizer(tmp_path / "again")("alpha beta").input_ids == summary.read_ids

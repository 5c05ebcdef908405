"""Graphs for other engines write what the model writes, under ONNX Runtime, and keep what it keeps under OpenVINO."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.exporters import ExportedModel

from tests.stock_models import stock_causal
from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.launch.cli import main
from transpooler.trainer.config import load_config
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.graphs import RUNNERS, export_graphs
from transpooler.trainer.weights.models import build_model, load_model

KINDS = {
    "halving": ["model.pooling=[{after_layer: 1, ratio: 0.5, span: 4}, {after_layer: 2, length: 8}]"],
    "threshold": [
        "model.pooling=[{after_layer: 2, length: 8, span: 2, operator: threshold}]",
        "model.stagger_blocks=true",
    ],
}
NUM_TOKENS = 10


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model: of a ratio of spans and a length, and of another operator over staggered blocks."""
    more = [f"data.shards={shards}", "data.max_source_tokens=90", *KINDS[request.param], "model.exploration_noise=0.5"]
    more += ["model.d_model=32", "model.num_heads=2", "model.ffn_dim=64", "model.block_size=16"]
    more += ["model.encoder_layers=2", "model.decoder_layers=1", "generation.max_new_tokens=10"]
    config = load_config([], more)
    tokenizer = load_tokenizer(shards / "tokenizer")
    output = tmp_path_factory.mktemp("model") / "export"
    export_model(build_model(config, tokenizer), tokenizer, output, config, step=1)
    return output


@pytest.mark.slow  # a minute, most of it torch's translation
def test_onnx_runtime_writes_what_the_model_writes(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "onnx"
    assert main(["export", str(folder), "--format", "onnx", "--length", "48,90", "--output", str(output)]) == 0
    model: Any = load_model(folder)[0]
    graphs = ExportedModel.from_pretrained(output).runners
    assert sorted(graphs) == ["decode", "encoder-48", "encoder-90", "prefill"]
    for length, filled in ((48, [48, 20]), (90, [90, 61])):
        mask = (torch.arange(length) < torch.tensor(filled)[:, None]).long()
        ids = torch.randint(6, 90, mask.shape, generator=torch.Generator().manual_seed(length)) * mask
        expected = model.generate(
            ids, attention_mask=mask, num_beams=1, do_sample=False, min_new_tokens=NUM_TOKENS, max_new_tokens=NUM_TOKENS
        )
        kept = [graphs[f"encoder-{length}"](input_ids=ids[i, None], attention_mask=mask[i, None]) for i in range(2)]
        memory = type(kept[0])(**{name: torch.cat([each[name] for each in kept]) for name in kept[0]})
        given = {"attention_mask": mask, "encoder_outputs": memory}
        written = expected[:, :1]
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for number in range(NUM_TOKENS):
            graph = graphs["decode" if number else "prefill"]
            step = graph(decoder_input_ids=written[:, -1:], past_key_values=cache, **given)
            cache, logits = step["past_key_values"], step["logits"][:, -1]
            logits[:, model.config.eos_token_id] = -torch.inf  # min_new_tokens
            written = torch.cat([written, logits.argmax(1, keepdim=True)], 1)
        assert written.tolist() == expected.tolist()

    _run_readme(output)


@pytest.mark.slow
def test_openvino_keeps_what_the_model_keeps(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "openvino"
    assert main(["export", str(folder), "--format", "openvino", "--length", "90", "--output", str(output)]) == 0
    encoder: Any = load_model(folder)[0].get_encoder()
    graphs = ExportedModel.from_pretrained(output, **RUNNERS["openvino"]).runners
    assert list(graphs) == ["encoder"]
    for filled in (90, 45, 3):  # an odd number of tokens, of which a half is kept; fewer than slots
        mask = (torch.arange(90) < filled).long()[None]
        ids = torch.randint(6, 90, mask.shape, generator=torch.Generator().manual_seed(filled)) * mask
        with torch.no_grad():
            ours = encoder(ids, mask)
        theirs = graphs["encoder"](input_ids=ids, attention_mask=mask)
        both = [each.attention_mask.bool() for each in (ours, theirs)]
        assert ours.positions[both[0]].tolist() == theirs.positions[both[1]].tolist()
        torch.testing.assert_close(
            theirs.last_hidden_state[both[1]], ours.last_hidden_state[both[0]], atol=1e-4, rtol=1e-4
        )
    _run_readme(output)


def _run_readme(folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_has_no_graph_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--length 91: this model reads 2 to 90 tokens"):
        export_graphs(folder, tmp_path / "out", "onnx", [91])
    monkeypatch.setattr("transpooler.trainer.weights.graphs.FORMATS", {"onnx": ("onnx", "no_such_engine")})
    with pytest.raises(UserError, match=r"needs no_such_engine; install them: pip install 'transpooler\[onnx\]'"):
        export_graphs(folder, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_lengths_are_numbers_and_for_graphs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--format", "onnx", "--length", "1k"], "--length 1k: expected numbers of tokens"),
        (["--length", "48"], "--length is for --format onnx or openvino"),
    ):
        assert main(["export", str(folder), "--output", str(tmp_path / "out"), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_compressor_has_none(shards: Path, tmp_path: Path) -> None:
    stock_causal(load_tokenizer(shards / "tokenizer"), tmp_path / "llama")
    command = ["adopt", str(tmp_path / "llama"), "--pooling", "1:8", "--output", str(tmp_path / "model")]
    assert main([*command, "model.encoder_layers=1"]) == 0
    with pytest.raises(UserError, match="a compressor has no graphs of its own"):
        export_graphs(tmp_path / "model", tmp_path / "out", "onnx")

"""`transpooler summarize` with a real, untrained model: what it prints, says, writes, and keeps when interrupted."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.launch.cli import main, parse
from transpooler.launch.commands import summarize
from transpooler.trainer.config import load_config
from transpooler.trainer.config.evaluation import GenerationConfig
from transpooler.trainer.evaluation import summarizer as summarizer_module
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.models import build_model

LONG = "alpha beta gamma delta " * 100


@pytest.fixture
def model(tiny_settings: list[str], tmp_path: Path) -> Path:
    config = load_config([], tiny_settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    export_model(build_model(config, tokenizer), tokenizer, tmp_path / "model", config, step=0)
    return tmp_path / "model"


def write(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return [folder / f"{name}.txt" for name in texts]


def run(capsys: pytest.CaptureFixture[str], model: Path, *arguments: object) -> tuple[int, str, str]:
    options = ("--model", model, "--max-new-tokens", 4, "--num-beams", 2)
    code = main(["summarize", *map(str, (*arguments, *options))])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_text_alone_several_under_headings(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write(tmp_path, a="alpha beta", b=LONG)
    code, alone, err = run(capsys, model, first)
    assert code == 0
    assert "were cut" not in err  # progress and the building of the operator may be there
    code, other, err = run(capsys, model, second)
    assert "1 of 1 documents were cut to 96 tokens\n" in err
    code, both, err = run(capsys, model, first, second, "--max-source-tokens", 90)
    assert code == 0
    assert both == f"== {first} ==\n{alone}\n== {second} ==\n{both.splitlines(keepends=True)[-1]}"
    assert "1 of 2 documents were cut to 90 tokens\n" in err
    assert "==" not in alone + other
    assert run(capsys, model, first, second, "--output", tmp_path / "out.txt", "--max-source-tokens", 90)[1] == ""
    assert (tmp_path / "out.txt").read_text() == both


def test_the_models_own_settings_hold_unless_others_are_given(model: Path, tmp_path: Path) -> None:
    def read(*options: str) -> dict[str, Any]:
        return asdict(summarize.read_generation(parse(["summarize", "a.txt", "--model", str(model), *options])))

    own: dict[str, Any] = {
        "num_beams": 3,
        "max_new_tokens": 9,
        "min_new_tokens": 2,
        "length_penalty": 1.5,
        "no_repeat_ngram_size": 2,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": None,
    }
    assert read() == asdict(GenerationConfig(max_new_tokens=256))
    (model / "generation_config.json").write_text(json.dumps(own))
    own["suppress_tokens"] = ()
    assert read() == own | {"batch_size": 8}
    assert read("--num-beams", "2", "--min-new-tokens", "0") == own | {
        "num_beams": 2,
        "min_new_tokens": 0,
        "batch_size": 8,
    }
    (model / "generation_config.json").write_text("{}")  # what transformers writes for greedy search
    assert read()["num_beams"] == 1


def test_json_names_row_and_lengths(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"id": 7, "text": "alpha beta"}, {"article_id": "x", "text": LONG}, {"text": "beta"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run(capsys, model, tmp_path / "rows.jsonl", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["id"] for row in found]) == (0, [7, "x", None])
    assert [row["document"] for row in found] == [f"{tmp_path}/rows.jsonl:{line}" for line in (1, 2, 3)]
    assert [row["num_source_tokens"] is None for row in found] == [False, True, False]
    assert found[1]["num_read_tokens"] == 96
    assert found[0]["num_read_tokens"] == found[0]["num_source_tokens"] + 1


def test_a_page_of_all_documents(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, a="alpha beta", b=LONG)
    code, out, _ = run(capsys, model, *files, "--html", tmp_path / "pages" / "all.html")
    page = (tmp_path / "pages" / "all.html").read_text()
    assert (code, out.count("==")) == (0, 4)
    assert "<h1>2 documents</h1>" in page
    assert page.count("The model read the first 96 tokens (&lt;/s&gt; counted).") == 1
    sentences = page.count("data-sources=")
    assert sentences >= 2
    assert page.count('<div class="grounded">') == 2
    code, out, _ = run(capsys, model, *files, "--html", tmp_path / "page.html", "--json", "--no-sources")
    assert "sentences" not in json.loads(out.splitlines()[0])
    assert (tmp_path / "page.html").read_text().count("data-sources=") == sentences


def test_an_interrupt_keeps_what_is_finished(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    generate, calls = summarizer_module.generate_ids, []

    def interrupted(*arguments: Any) -> list[list[int]]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(summarizer_module, "generate_ids", interrupted)
    files = write(tmp_path, a="alpha", b="beta", c="gamma")
    options = ("-q", "--batch-size", 1, "--json", "--output", tmp_path / "out", "--html", tmp_path / "page.html")
    code, _, err = run(capsys, model, *files, *options)
    assert (code, f"{tmp_path}/out.incomplete keeps the 2 summaries that were finished\n" in err) == (130, True)
    kept = [json.loads(line)["document"] for line in (tmp_path / "out.incomplete").read_text().splitlines()]
    assert kept == [str(file) for file in files[:2]]
    assert sorted(path.name for path in tmp_path.iterdir() if "incomplete" in path.name) == ["out.incomplete"]
    assert not (tmp_path / "out").exists()

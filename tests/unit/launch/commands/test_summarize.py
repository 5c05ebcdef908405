"""`transpooler summarize` with a real, untrained model: what it prints, says, writes, and keeps when interrupted."""

import json
import re
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.launch.cli import main, parse
from transpooler.launch.commands import summarize
from transpooler.launch.summary_output import open_output
from transpooler.model.ops.decoding import packed_linear, prepare
from transpooler.model.ops.decoding.kernels import NoKernelsError
from transpooler.model.ops.decoding.precisions import PRECISIONS
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


def interrupt(patch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C when so many batches have been generated."""
    generate, calls = summarizer_module.generate_ids, []

    def interrupted(*arguments: Any) -> list[list[int]]:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return generate(*arguments)

    patch.setattr(summarizer_module, "generate_ids", interrupted)


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
    own |= {"suppress_tokens": (), "precision": "fp32"}
    assert read() == own | {"batch_size": 8}
    assert read("--precision", "int8")["precision"] == "int8"
    assert read("--num-beams", "2", "--min-new-tokens", "0") == own | {
        "num_beams": 2,
        "min_new_tokens": 0,
        "batch_size": 8,
    }
    (model / "generation_config.json").write_text("{}")  # what transformers writes for greedy search
    assert read()["num_beams"] == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_summaries_are_written_with_the_precision_that_was_asked_for(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    dtypes, product = [], packed_linear.packed_linear

    def note(x: Any, *rest: Any) -> Any:
        dtypes.append(rest[0].dtype)
        return product(x, *rest)

    monkeypatch.setattr(packed_linear, "packed_linear", note)
    code, out, _ = run(capsys, model, *write(tmp_path, a=LONG), "--precision", precision)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision]
    assert (code, len(out) > 1, set(dtypes)) == (0, True, {wanted})


def test_a_budget_is_kept_or_refused_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path, a=LONG)
    for keep in ("4", "3"):
        code, _, _ = run(capsys, model, *files, "--keep", keep, "--html", tmp_path / "page.html")
        assert (code, f"after layer 2: {keep} of" in (tmp_path / "page.html").read_text()) == (0, True)
    code, out, err = run(capsys, model, *files, "--keep", "0.3")
    assert (code, out) == (2, "")
    assert err.startswith("transpooler: error: --keep is 0.3; must be 1/2, 1/4, 1/8, ...; trained with ")


def test_an_unknown_precision_takes_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, model, *write(tmp_path, a=LONG), "--precision", "fp16")
    assert (code, out) == (2, "")
    assert err == "transpooler: error: --precision is 'fp16'; choose one of fp32, bf16, int8\n"


def test_where_the_kernels_cannot_be_built_rounding_is_refused_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise NoKernelsError("no C++ kernels for decoding (no g++)")

    monkeypatch.setattr(prepare, "extension", fail)
    code, _, err = run(capsys, model, *write(tmp_path, a=LONG), "--precision", "int8")
    assert code == 2
    assert err.splitlines()[-1].endswith("generation.precision (--precision): no C++ kernels for decoding (no g++)")


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
    files = write(tmp_path, a="alpha", b="beta", c="gamma")
    options = ("-q", "--batch-size", 1, "--json", "--output", tmp_path / "out", "--html", tmp_path / "page.html")
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        code, _, err = run(capsys, model, *files, *options)
    assert (code, f"{tmp_path}/out.incomplete keeps the 2 summaries that were finished\n" in err) == (130, True)
    kept = [json.loads(line)["document"] for line in (tmp_path / "out.incomplete").read_text().splitlines()]
    assert kept == [str(file) for file in files[:2]]
    kept_files = ["out.incomplete", "out.incomplete.log"]
    assert sorted(path.name for path in tmp_path.iterdir() if "incomplete" in path.name) == kept_files
    assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, model, *files, *options[1:])
    assert (code, f"{tmp_path}/out.incomplete: begun anew; a page or a pipe needs all\n" in err) == (0, True)
    assert [json.loads(line)["document"] for line in (tmp_path / "out").read_text().splitlines()] == [*map(str, files)]
    assert not [path.name for path in tmp_path.iterdir() if "incomplete" in path.name]


ROWS = "".join(json.dumps({"text": "alpha beta. " * (1 + number % 5), "id": number}) + "\n" for number in range(12))


@pytest.mark.parametrize("form", [("--json",), ()])
def test_the_same_command_goes_on_where_it_was_interrupted(
    form: tuple[str, ...],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, out, whole = tmp_path / "rows.jsonl", tmp_path / "out", tmp_path / "whole"
    rows.write_text(ROWS)
    options = (rows, "--batch-size", 2, *form)
    assert run(capsys, model, *options, "--output", whole)[0] == 0
    with monkeypatch.context() as patch:
        interrupt(patch, after=4)
        assert run(capsys, model, *options, "--output", out)[0] == 130
    held = (tmp_path / "out.incomplete").read_bytes()
    assert 0 < len(held) < len(whole.read_bytes())
    with (tmp_path / "out.incomplete").open("ab") as file:
        file.write(b'{"document": "cut in the mid')  # as a kill leaves it
    code, _, err = run(capsys, model, *options, "--output", out)
    done = int(re.findall(r"out.incomplete: holds (\d+) summaries; goes on behind them", err)[0])
    assert (code, done >= 2) == (0, True)
    assert out.read_bytes() == whole.read_bytes()
    assert re.search(rf"summarize: {12 - done} documents made, [\d.,]+ documents/min", err)
    assert not [path.name for path in tmp_path.iterdir() if "incomplete" in path.name]


def test_other_settings_inputs_or_models_do_not_go_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text(ROWS)
    options = (rows, "--batch-size", 2, "--json", "--output", out)
    with monkeypatch.context() as patch:
        interrupt(patch, after=4)
        run(capsys, model, *options)
    held = (tmp_path / "out.incomplete").read_bytes()

    def refused(*more: object) -> str:
        code, _, err = run(capsys, model, *options, *more)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "start that one again to go on, or remove the file to begin anew" in err
        assert (tmp_path / "out.incomplete").read_bytes() == held
        return err

    assert "(no_sources was False, is True)" in refused("--no-sources")
    assert "(max_source_tokens was None, is 50, batch_size was 2, is 3)" in refused(
        "--max-source-tokens", 50, "--batch-size", 3
    )
    rows.write_text(ROWS.replace("beta", "gamma"))
    assert "(the inputs changed)" in refused()
    rows.write_text(ROWS)
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config + " ")
    assert "(the model changed)" in refused()
    (model / "config.json").write_text(config)
    assert run(capsys, model, *options)[0] == 0


@pytest.mark.parametrize(
    ("end_of_log", "expected"),
    [
        (b"", "holds 12 summaries"),
        (b"12", "holds 12 summaries"),
        (b"\0\0\n", "holds 12 summaries"),
        (None, "begun anew"),
    ],
)
def test_a_log_that_was_cut_and_a_kill_behind_the_last_result(
    end_of_log: bytes | None,
    expected: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text(ROWS)
    options = (rows, "--batch-size", 4, "--output", out)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transpooler.common.files.os.replace", killed)  # when all is written, before it has its name
        assert run(capsys, model, *options)[0] == 130
    whole, log = (tmp_path / "out.incomplete").read_bytes(), tmp_path / "out.incomplete.log"
    log.write_bytes(b"{" if end_of_log is None else log.read_bytes() + end_of_log)
    code, _, err = run(capsys, model, *options)
    assert (code, expected in err) == (0, True)
    assert ("nothing left to make" in err) == (end_of_log is not None)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("options", [(), ("--html", "page.html")])
@pytest.mark.parametrize(
    "names",
    [
        {"out.incomplete": b"precious"},
        {"out.incomplete": b"precious", "out.incomplete.log": b"precious"},
        {"out.incomplete.log": b"precious"},
        {"out.incomplete/thesis.txt": b"precious"},
        {"out.incomplete.log/thesis.txt": b"precious"},
    ],
)
def test_somebodys_unfinished_file_is_not_touched(
    names: dict[str, bytes],
    options: tuple[str, ...],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (file,) = write(tmp_path, a="alpha")
    monkeypatch.chdir(tmp_path)
    for name, content in names.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    code, _, err = run(capsys, model, file, "--output", "out", *options)
    assert (code, len(err.splitlines()), "move it, or choose another --output" in err) == (2, 1, True)
    assert {name: Path(name).read_bytes() for name in names} == names
    assert {path.name for path in Path().glob("*out*")} == {name.partition("/")[0] for name in names}


@pytest.mark.parametrize("cut", [0, 300])
def test_a_page_replaces_what_a_page_left_and_nothing_else(
    cut: int, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = write(tmp_path, a="alpha")
    page, incomplete = tmp_path / "page.html", tmp_path / "page.html.incomplete"
    incomplete.write_text("precious")
    code, out, err = run(capsys, model, file, "--html", page)
    assert (code, out) == (2, "")  # before any summary is made
    assert err.endswith(
        "page.html.incomplete: was not left by a page of `transpooler`; move it, or choose another name\n"
    )
    assert incomplete.read_text() == "precious"
    incomplete.unlink()
    assert run(capsys, model, file, "--html", page)[0] == 0
    incomplete.write_bytes(page.read_bytes()[:cut])  # as a kill leaves it
    assert run(capsys, model, file, "--html", page)[0] == 0
    assert not incomplete.exists()


def test_summaries_that_could_go_on_are_not_lost_to_a_page(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    options = (tmp_path / "rows.jsonl", "--batch-size", 2, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupt(patch, after=4)
        assert run(capsys, model, *options)[0] == 130
    held = (tmp_path / "out.incomplete").read_bytes()
    code, _, err = run(capsys, model, *options, "--html", tmp_path / "page.html")
    assert (code, "summaries of a run that can go on" in err, len(err.splitlines())) == (2, True, 1)
    assert (tmp_path / "out.incomplete").read_bytes() == held
    assert run(capsys, model, *options)[0] == 0


@pytest.mark.parametrize("limit", [1, 30, 300])
def test_a_limit_of_a_files_size_names_the_output_and_keeps_what_is_whole(
    tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of the two files meets it, the log or the results. (capsys: messages go to memory, not to a file.)"""

    def write() -> None:
        with open_output(tmp_path / "out", {"a": "b" * 20}) as output:
            for _ in range(output.num_done, 99):
                output.write("0123456789")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(UserError, match="out: cannot write: File too large"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()
    write()
    assert (tmp_path / "out").read_text() == "0123456789\n" * 99


def test_one_output_is_written_by_one_command(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", {}) as first:
        first.write("one")
        with pytest.raises(UserError, match="another `transpooler summarize` is writing it"):
            open_output(tmp_path / "out", {}).__enter__()
        first.write("two")
    assert (tmp_path / "out").read_text() == "one\ntwo\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_page_is_not_made_of_a_stream(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = write(tmp_path, a="alpha")
    code, _, err = run(capsys, model, file, "--stream", "--html", tmp_path / "page.html")
    assert (code, "--html: the page is made of all documents" in err, len(err.splitlines())) == (2, True, 1)

"""The command line: parsing, light imports, exit codes and the messages for bad input."""

import subprocess
import sys
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.launch.arguments import config_settings, split_settings
from transpooler.launch.cli import COMMANDS, main, parse
from transpooler.launch.exits import run_guarded

MODEL = '{"model_type": "transpooler"}'
HEAVY = ("torch", "transformers", "deepspeed", "numpy", "pydantic", "omegaconf", "rich", "jinja2", "webdataset")


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_says_something_and_imports_nothing_heavy(command: str) -> None:
    script = (
        "import sys\nfrom transpooler.launch.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", script, *([command] if command else []), "--help"]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert output.rstrip().endswith("HEAVY []")
    assert "examples:" in output if command else "exit codes:" in output


def test_settings_are_files_and_overrides() -> None:
    settings = ["a.yaml", "train.steps=3", "dir=x/b.yaml", "prepare.sources.train=[x=1.jsonl]", "./a=b/c.yaml"]
    files, overrides = split_settings(settings)
    assert files == ["a.yaml", "./a=b/c.yaml"]
    assert overrides == ["train.steps=3", "dir=x/b.yaml", "prepare.sources.train=[x=1.jsonl]"]


def test_settings_may_follow_options() -> None:
    parsed = parse(["train", "a.yaml", "--processes", "2", "train.steps=3"])
    assert (parsed.settings, parsed.processes) == (["a.yaml", "train.steps=3"], 2)
    with pytest.raises(SystemExit) as stopped:
        parse(["train", "a.yaml", "--proceses", "2"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        parse(["export", "run", "--output", "x", "surplus"])


def test_print_config_shows_the_resolved_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("train: {steps: 9000}\n")
    code, out, _ = run_main(capsys, "train", tmp_path / "a.yaml", "train.log_every_steps=3", "--print-config")
    assert code == 0
    assert "steps: 9000" in out
    assert "log_every_steps: 3" in out
    (tmp_path / "again.yaml").write_text(out)
    assert run_main(capsys, "train", tmp_path / "again.yaml", "--print-config")[1] == out


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate"])
@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (None, "seed=1", "no such configuration file"),
        ("train: [", "seed=1", "not valid YAML"),
        ("- a\n- b", "seed=1", "expected a mapping"),
        ("", "train.stepz=3", "train.stepz: unknown key; did you mean train.steps?"),
        ("", "train.steps=many", "train.steps is 'many'"),
        ("", "engine.zero_stage=7", "engine.zero_stage is 7; DeepSpeed knows 0, 1, 2 and 3"),
        ("\x00\xff", "seed=1", "a.yaml"),
    ],
)
def test_configuration_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str | None, override: str, message: str
) -> None:
    if text is not None:
        (tmp_path / "a.yaml").write_bytes(text.encode("latin-1"))
    code, out, err = run_main(capsys, command, tmp_path / "a.yaml", override)
    assert (code, out) == (2, "")
    assert err.startswith("transpooler: error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_every_configuration_problem_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("")
    code, _, err = run_main(capsys, "train", tmp_path / "a.yaml", "engine.zero_stage=7", "train.steps=0")
    assert code == 2
    assert [line.split(" is ")[0] for line in err.splitlines()][:2] == [
        "transpooler: error: engine.zero_stage",
        "transpooler: error: train.steps",
    ]


def test_a_run_folder_stands_for_its_config(tmp_path: Path) -> None:
    assert config_settings([str(tmp_path), "seed=1"]) == [str(tmp_path / "config.yaml"), "seed=1"]


def test_what_lies_here_goes_before_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_settings(["pyramidion"]) == ["pyramidion"], "a preset's name means the same in every folder"
    (tmp_path / "pyramidion").mkdir()
    (tmp_path / "pyramidion" / "config.yaml").write_text("seed: 7\n")
    assert config_settings(["pyramidion"]) == [str(Path("pyramidion") / "config.yaml")]


@pytest.mark.parametrize("arguments", [("report", "RUN"), ("export", "RUN", "--output", "RUN/x")])
def test_a_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, _, err = run_main(capsys, *(item.replace("RUN", str(tmp_path)) for item in arguments))
    assert code == 2
    assert f"{tmp_path}: not a run folder" in err


def test_evaluate_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(f"run: {tmp_path}\n")
    code, _, err = run_main(capsys, "evaluate", tmp_path / "a.yaml")
    assert (code, f"{tmp_path / 'export'}: no exported model there" in err) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "No such file"),
        ("a.txt", b"", "empty document"),
        ("a.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("a.jsonl", None, "error: /"),
        ("a.jsonl", None, "no such file"),
        ("a.jsonl", b"", "error: /"),
        ("a.jsonl", b"", "holds no documents"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\0", "a.jsonl.zst:1: broken zstd file"),
        ("a\x1b[31m.jsonl", b"[]", "a\\u001b[31m.jsonl:1"),
        ("a.jsonl", b"\n\n", "holds no documents"),
        ("a.jsonl", b'{"text": "fine"}\n{"text"\n{"text": "fine"}\n', "a.jsonl:2"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": 3}\n', "a.jsonl:2: 'text' is neither"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz"),
    ],
)
def test_documents_that_cannot_be_summarized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    (tmp_path / "config.json").write_text(MODEL)  # looks like a model; the documents are checked before it is loaded
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = run_main(capsys, "summarize", tmp_path / name, "--model", tmp_path)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_summarize_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_main(capsys, "summarize", "x.txt", "--model", tmp_path / "none")
    assert (code, "no exported model there" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--min-new-tokens", 50, "--max-new-tokens", 20), "--min-new-tokens is 50"),
        (("--min-new-tokens", 0), "x.txt: cannot read: No such file"),
        (("--no-repeat-ngram-size", 0), "x.txt: cannot read: No such file"),
    ],
)
def test_generation_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], message: str
) -> None:
    (tmp_path / "config.json").write_text(MODEL)
    code, _, err = run_main(capsys, "summarize", "x.txt", "--model", tmp_path, *options)
    assert (code, message in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND; see transpooler --help"),
        (("sumarize",), "invalid choice: 'sumarize'"),
        (("summarize", "x.txt"), "the following arguments are required: --model; see transpooler summarize --help"),
        (("summarize", "x.txt", "--model", "m", "--num-beams", "0"), "'0' is not a positive whole number"),
        (("summarize", "x.txt", "--model", "m", "--min-new-tokens", "-1"), "'-1' is not a whole number"),
        (("summarize", "x.txt", "--model", "m", "--length-penalty", "nan"), "'nan' is not a finite number"),
        (("summarize", "x.txt", "--model", "m", "--length-penalty", "long"), "'long' is not a finite number"),
        (("export", "RUN", "--output", "x", "surplus"), "unrecognized arguments: surplus"),
    ],
)
def test_mistakes_in_arguments_take_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("transpooler: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("output", "html", "message"),
    [
        ("x.txt", None, "--output FOLDER/x.txt: FOLDER/x.txt is an input"),
        (None, "link.html", "--html FOLDER/link.html: FOLDER/link.html is an input"),
        ("y", "y", "--html FOLDER/y: FOLDER/y is --output, too"),
        ("y", "y.incomplete", "FOLDER/y.incomplete is --output, too"),
        ("z", None, "--output FOLDER/z: FOLDER/z.incomplete is an input"),
        ("", None, "is a folder; name a file in it"),
        (None, "x.txt/page.html", "FOLDER/x.txt is no folder that can be written"),
        ("/dev/null", None, "--output /dev/null: is no regular file"),
    ],
)
def test_targets_are_checked_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str | None, html: str | None, message: str
) -> None:
    (tmp_path / "config.json").write_text(MODEL)
    for name in ("x.txt", "z.incomplete"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "link.html").symlink_to(tmp_path / "x.txt")
    given = [("--output", output), ("--html", html)]
    options = [str(part) for name, path in given if path is not None for part in (name, tmp_path / path)]
    before = sorted(path.name for path in tmp_path.iterdir())
    inputs = (tmp_path / "x.txt", tmp_path / "z.incomplete")
    code, out, err = run_main(capsys, "summarize", *inputs, "--model", tmp_path, *options)
    assert (code, out) == (2, "")
    assert message.replace("FOLDER", str(tmp_path)) in err
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "x.txt").read_text() == "precious"


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def mistaken() -> None:
        raise UserError("first", "second")

    def broken() -> None:
        raise RuntimeError("a bug")

    assert run_guarded(lambda: None) == 0
    assert run_guarded(lambda: 75) == 75
    assert run_guarded(interrupted) == 130
    assert run_guarded(mistaken) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["transpooler: error: first", "transpooler: error: second"]
    with pytest.raises(RuntimeError, match="a bug"):
        run_guarded(broken)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("")
    pipe = (
        f"{sys.executable} -u -m transpooler train {tmp_path / 'a.yaml'} --print-config | true; echo ${{PIPESTATUS[0]}}"
    )
    finished = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("0\n", "")

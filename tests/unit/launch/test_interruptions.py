"""Signals at moments that are chosen: one line, the code that shells and schedulers know, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Job, command

from tests.paths import ROOT
from transpooler.__main__ import main as program_main
from transpooler.common.signals import UNWIND_S
from transpooler.launch.cli import main
from transpooler.trainer.run_folder import RunFolder

AT_AN_IMPORT = """
import os, runpy, sys
name, number = sys.argv[1], int(sys.argv[2])
class Finder:
    def find_spec(module, *_):
        if module == name:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder)
del sys.argv[1:3]
runpy.run_module("transpooler", run_name="__main__")
"""
AT_A_RENAME = """
import os, signal, sys
from transpooler.__main__ import main
def hook(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(".tar"):
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(hook)
sys.exit(main())
"""
AT_THE_END = """
import atexit, os, runpy, sys
atexit.register(os.kill, os.getpid(), int(sys.argv.pop(2)))
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""
IN_A_TEXT = """
import sys
from transpooler.launch.exits import run_guarded
sys.exit(run_guarded(lambda: exec("raise KeyboardInterrupt")))
"""


@pytest.fixture(autouse=True)
def hears_ctrl_c() -> Iterator[None]:
    """Here and in what is started from here, also where the tests run under nohup or behind `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(program: str, *arguments: object) -> tuple[int, list[str]]:
    """Exit code and lines of standard error."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr.splitlines()


def prepare(folder: Path) -> list[str]:
    rows = [{"article": f"Document {n}. " + "Some words. " * 20, "abstract": f"About {n}."} for n in range(3)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"output": folder / "out", "sources.train": f"[{folder / 'a.jsonl'}]", "tokenizer.vocab_size": 300}
    return ["prepare", *(f"prepare.{key}={value}" for key, value in settings.items()), "prepare.workers=1"]


@pytest.mark.parametrize("moment", ["cli", "commands.summarize"])
@pytest.mark.parametrize(("number", "code", "line"), [
    (signal.SIGINT, 130, "transpooler: interrupted"),
    (signal.SIGTERM, 75, "transpooler: stopped by SIGTERM"),
    (signal.SIGHUP, 75, "transpooler: stopped by SIGHUP"),
])  # fmt: skip
def test_while_the_command_line_is_imported(moment: str, number: int, code: int, line: str) -> None:
    found = run(AT_AN_IMPORT, f"transpooler.launch.{moment}", int(number), "train", "pyramidion")
    assert found == (code, [line])


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "transpooler: interrupted"),
        (signal.SIGTERM, 143, "transpooler: stopped by SIGTERM"),
        (signal.SIGUSR1, 138, "transpooler: stopped by SIGUSR1"),
        (signal.SIGHUP, 129, "transpooler: stopped by SIGHUP"),
    ],
)
def test_while_a_command_imports_what_it_needs(number: int, code: int, line: str, tmp_path: Path) -> None:
    found = run(AT_AN_IMPORT, "tokenizers", int(number), *prepare(tmp_path))
    assert found == (code, [line])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("command", ["train", "launch", "evaluate", "report"])
def test_what_nohup_ignores_is_ignored(command: str) -> None:
    program = f"import signal; signal.signal({int(signal.SIGHUP)}, signal.SIG_IGN)" + AT_AN_IMPORT
    target = ["local"] if command == "launch" else []
    found = run(program, "transpooler.trainer.config.load", int(signal.SIGHUP), command, *target, "nowhere.yaml")
    assert found[0] == 2
    assert len(found[1]) == 1


def test_while_a_shard_gets_its_name(tmp_path: Path) -> None:
    command = prepare(tmp_path)
    assert run(AT_A_RENAME, *command) == (143, ["transpooler: stopped by SIGTERM"])
    assert not list(tmp_path.rglob("*.tar.incomplete"))
    code, lines = run("import sys; from transpooler.__main__ import main; sys.exit(main())", *command)
    assert code == 0, lines
    assert "going on with what an earlier run left" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def at_a_file(event: str, ending: str, number: int, arguments: list[str]) -> int:
    """In a process of its own: the program, which gets a signal when it does that with such a file."""
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def hook(found: str, about: tuple[object, ...]) -> None:
        if found == event and any(str(part).endswith(ending) for part in about[:2]):
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    sys.argv = ["transpooler", *arguments]
    return program_main()


ENDS = {
    signal.SIGINT: (130, "transpooler: interrupted"),
    signal.SIGTERM: (75, "transpooler: stopped by SIGTERM"),
    signal.SIGHUP: (75, "transpooler: stopped by SIGHUP"),
}


@pytest.mark.parametrize(
    ("event", "ending", "number", "is_done"),
    [
        ("open", "run/config.yaml", signal.SIGHUP, False),
        ("os.mkdir", "run/evaluation", signal.SIGINT, False),
        ("open", "lock", signal.SIGTERM, False),
        ("open", "export/config.json", signal.SIGINT, False),
        ("os.rename", "generated.jsonl", signal.SIGHUP, True),
        ("os.rename", "highlights.json", signal.SIGTERM, True),
        ("os.rename", "metrics.json", signal.SIGINT, True),
        ("os.rename", "lock", signal.SIGINT, True),
    ],
)
def test_while_an_evaluation_reads_and_writes(event, ending, number, is_done, exported_run: Path) -> None:
    run, log = RunFolder(exported_run), exported_run / "log"
    job = Job(1, at_a_file, (event, ending, int(number), ["evaluate", str(run.root), "-q"]), log)
    code, line = ENDS[number]
    assert job.codes() == [code], job.output()
    assert [text for text in job.output().splitlines() if "WARNING" not in text] == [line]
    assert not list(run.root.rglob("*.incomplete"))
    assert run.evaluations.exists() == is_done
    assert len(run.finished_evaluations()) == is_done
    assert command(1, ["evaluate", str(run.root), "-q"], log).codes() == [0], log.read_text()
    assert len(run.finished_evaluations()) == 1
    assert not list(run.root.rglob("lock"))


def test_ctrl_c_in_a_text_that_python_runs_is_an_exit_code_too(tmp_path: Path) -> None:
    """In a module that is run as the command is, by -m."""
    (tmp_path / "in_a_text.py").write_text(IN_A_TEXT)
    command = [sys.executable, "-m", "in_a_text"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "transpooler: interrupted\n")


class DiesOf:
    """Its end is one during which Python drops exceptions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_whose_exception_is_dropped_comes_again(number, code, monkeypatch, capfd) -> None:
    """As one that hit a `__del__` while a tokenizer was loaded: the command went on, or lost its lock."""
    ended: list[object] = []

    def drop(_: object) -> None:
        try:
            DiesOf(number)
            time.sleep(UNWIND_S - 1)
        finally:
            ended.append(sys.exc_info()[0])

    monkeypatch.setattr("transpooler.launch.commands.report.run", drop)
    assert end_of(["report", "a"]) == code
    assert ended[0] is not None, "it went on"
    (line,) = capfd.readouterr().err.splitlines()
    assert line in ("transpooler: interrupted", f"transpooler: stopped by {signal.Signals(number).name}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_a_library_makes_of_a_signal_ends_as_the_signal_would(number, code, monkeypatch, capfd) -> None:
    """numpy's first import has made a RecursionError of Ctrl-C."""

    def swallow(_: object) -> None:
        try:
            signal.raise_signal(number)
        except BaseException:
            raise RecursionError from None

    monkeypatch.setattr("transpooler.launch.commands.report.run", swallow)
    assert end_of(["report", "a"]) == code
    assert capfd.readouterr().err.startswith("transpooler: ")
    monkeypatch.setattr("transpooler.launch.commands.report.run", lambda _: [][1])
    with pytest.raises(IndexError):
        main(["report", "a"])


def end_of(command: list[str]) -> object:
    """The code with which the command ends this process."""
    try:
        return main(command)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_when_all_is_done_is_no_failure(number: int) -> None:
    code, lines = run(AT_THE_END, "transpooler", int(number), "train", "pyramidion", "--print-config")
    assert (code, lines) == (0, [])


@pytest.mark.parametrize(("command", "code"), [("train", 75), ("report", 143)])
def test_the_line_of_a_job_is_that_of_its_first_rank(command, code, monkeypatch, capfd) -> None:
    def stop(_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(f"transpooler.launch.commands.{command}.run", stop)
    for rank, line in (("0", "transpooler: stopped by SIGTERM\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert (end_of([command, "a"]), capfd.readouterr().err) == (code, line)

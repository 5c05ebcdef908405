"""Standard streams that are full, closed or read by nobody, in every command that prints."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from forked import Job

from tests.run_folders import add_evaluation, make_run
from transpooler import __version__

COMMANDS = {
    "help": "--help",
    "help of a command": "train --help",
    "help of a kind": "bench speed --help",
    "version": "--version",
    "configuration": "train pyramidion --print-config",
    "estimate": "train run --dry-run",
    "plan": "launch local run --dry-run",
    "manifest": "launch kubernetes run cluster.kubernetes.image=a --dry-run",
    "order": "order run",
    "verify": "verify shards",
    "inspect": "inspect shards",
    "summary": "summarize a.txt --model run/export --max-new-tokens 2",
    "stream": "summarize - --stream --json --model run/export --max-new-tokens 2",
    "table": "evaluate run",
    "report": "report other",
    "judge": "judge other/evaluation/test other/evaluation/test-untrained --output judge",
    "checkpoints": "checkpoints other",
    "export": "export run/export --output copy",
    "doctor": "doctor",
}
FEW = ("help", "configuration", "order", "verify", "inspect")
MISTAKES = {"mistake": "verify nowhere", "input": "summarize - --model run/export"}
PROBLEM = "transpooler: error: standard output cannot be written: {}; free space, or send it elsewhere"


@pytest.fixture
def folder(tmp_path: Path, shards: Path, exported_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("shards").symlink_to(shards)
    Path("a.txt").write_text("alpha beta")
    other = exported_run.with_name("other")
    (other / "checkpoints" / "global_step1").mkdir(parents=True)
    for trained in (True, False):
        add_evaluation(make_run(other), trained=trained)
    return tmp_path


def show(folder: Path, stream: int, state: str, arguments: list[str]) -> int:
    """In a process of its own: the program, one of whose standard streams is so."""
    os.chdir(folder)
    os.dup2(os.open("a.txt", os.O_RDONLY), 0)
    sys.stdin = open(0)  # noqa: SIM115
    if state == "closed":
        os.close(stream)
        setattr(sys, ("stdin", "stdout", "stderr")[stream], None)
    elif state == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), stream)
    else:
        reader, writer = os.pipe()
        os.dup2(writer, stream)
        os.close(reader)
    from transpooler.__main__ import main

    sys.argv = ["transpooler", *arguments]
    return main()


def run(folder: Path, stream: int, state: str, names: Iterable[str]) -> dict[str, tuple[int | None, list[str]]]:
    """Exit code and lines of standard error, of these commands at the same time."""
    jobs = {
        name: Job(
            1,
            show,
            (folder, stream, state, (COMMANDS | MISTAKES)[name].split()),
            folder / f"{name}, {stream} {state}.log",
        )
        for name in names
    }
    return {name: (job.codes(600)[0], job.output().splitlines()) for name, job in jobs.items()}


@pytest.mark.slow
def test_results_that_nobody_can_get(folder: Path) -> None:
    for name, (code, lines) in run(folder, 1, "full", COMMANDS).items():
        assert (code, lines[-1:]) == (2, [PROBLEM.format("No space left on device")]), name
        assert not [line for line in lines[:-1] if "rror" in line], name


def test_standard_output_that_is_closed(folder: Path) -> None:
    for name, found in run(folder, 1, "closed", FEW).items():
        assert found == (2, [PROBLEM.format("Bad file descriptor")]), name


def test_a_reader_that_has_enough_is_no_mistake(folder: Path) -> None:
    for name, found in run(folder, 1, "unread", FEW).items():
        assert found == (0, []), name


def test_standard_error_that_is_closed_or_full_changes_no_code(folder: Path) -> None:
    for state in ("closed", "full"):
        found = run(folder, 2, state, ["version", "mistake"])
        assert found == {"version": (0, [f"transpooler {__version__}"]), "mistake": (2, [])}


def test_standard_input_that_is_closed_is_empty(folder: Path) -> None:
    problem = "transpooler: error: standard input: empty; nothing to summarize"
    assert run(folder, 0, "closed", ["input"]) == {"input": (2, [problem])}

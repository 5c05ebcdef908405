"""`transpooler summarize` as a process: killed and started again, and between two pipes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest

from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.launch.cli import main
from transpooler.trainer.config import load_config
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.models import build_model

NUM_ROWS = 40


@pytest.fixture
def command(tiny_settings: list[str], tmp_path: Path) -> list[str]:
    config = load_config([], tiny_settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    export_model(build_model(config, tokenizer), tokenizer, tmp_path / "model", config, step=0)
    return ["summarize", "--model", str(tmp_path / "model"), "--json", "--max-new-tokens", "30", "--num-beams", "2"]


def row(number: int) -> str:
    return json.dumps({"id": number, "text": f"alpha {number}. beta gamma! " * (1 + 7 * number % 5)}) + "\n"


def test_a_killed_run_goes_on_to_the_same_bytes(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(map(row, range(NUM_ROWS))))
    whole, out, incomplete = (tmp_path / name for name in ("whole.jsonl", "out.jsonl", "out.jsonl.incomplete"))
    command = [*command, str(tmp_path / "rows.jsonl"), "--batch-size", "2", "--output"]
    assert main([*command, str(whole)]) == 0
    held = []
    for wanted in (3, 17):  # killed twice: the second time within what a second start has added
        killed = forked.command(1, [*command, str(out)], tmp_path / "log.txt")
        while killed.processes[0].is_alive() and count_lines(incomplete) < wanted:
            time.sleep(0.005)
        killed.kill()
        assert killed.codes() == [-signal.SIGKILL], killed.output()
        held.append(count_lines(incomplete))
        assert not out.exists()
    capsys.readouterr()
    assert main([*command, str(out)]) == 0
    said = capsys.readouterr().err
    assert 3 <= held[0] < held[1] < NUM_ROWS
    assert f"holds {held[1]} summaries; goes on behind them" in said
    assert f"summarize: {NUM_ROWS - held[1]} documents made" in said
    assert out.read_bytes() == whole.read_bytes()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [*range(NUM_ROWS)]
    assert not list(tmp_path.glob("*.incomplete*"))


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_stream_answers_each_line_before_the_next_one_comes(command: list[str], tmp_path: Path) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "transpooler", *command, "-", "--json-input", "--stream"]
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for number in range(3):
            process.stdin.write(row(number))
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert (answer["id"], answer["document"]) == (number, f"standard input:{number + 1}")
            assert answer["sentences"]
        process.stdin.write("no JSON\n")
        process.stdin.close()
        assert process.stdout.read() == ""
        said = process.stderr.read()
        assert process.wait(60) == 2
    assert "standard input:4: not valid JSON" in said.splitlines()[-1]

"""`transpooler summarize` as a process: killed and started again, and between two pipes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import load_config
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.models import build_model

NUM_ROWS = 40


@pytest.fixture
def command(tiny_settings: list[str], tmp_path: Path) -> list[str]:
    config = load_config([], tiny_settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    export_model(build_model(config, tokenizer), tokenizer, tmp_path / "model", config, step=0)
    return [
        *(sys.executable, "-m", "transpooler", "summarize", "--model", str(tmp_path / "model"), "--json"),
        *("--max-new-tokens", "30", "--num-beams", "2"),
    ]


def row(number: int) -> str:
    return json.dumps({"id": number, "text": f"alpha {number}. beta gamma! " * (1 + 7 * number % 5)}) + "\n"


def test_a_killed_run_goes_on_to_the_same_bytes(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(map(row, range(NUM_ROWS))))
    whole, out, incomplete = (tmp_path / name for name in ("whole.jsonl", "out.jsonl", "out.jsonl.incomplete"))
    command = [*command, str(tmp_path / "rows.jsonl"), "--batch-size", "2", "--output"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    held = []
    for wanted in (3, 17):  # killed twice: the second time within what a second start has added
        killed = subprocess.Popen([*command, str(out)], stderr=subprocess.PIPE, start_new_session=True)
        while killed.poll() is None and count_lines(incomplete) < wanted:
            time.sleep(0.005)
        os.killpg(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL, killed.stderr and killed.stderr.read()
        held.append(count_lines(incomplete))
        assert not out.exists()
    done = subprocess.run([*command, str(out)], check=True, capture_output=True, text=True)
    assert 3 <= held[0] < held[1] < NUM_ROWS
    assert f"holds {held[1]} summaries; goes on behind them" in done.stderr
    assert f"summarize: {NUM_ROWS - held[1]} documents made" in done.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [*range(NUM_ROWS)]
    assert not list(tmp_path.glob("*.incomplete*"))


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_stream_answers_each_line_before_the_next_one_comes(command: list[str], tmp_path: Path) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*command, "-", "--json-input", "--stream"]
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

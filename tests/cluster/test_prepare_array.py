"""`transpooler prepare` as an array of a real SLURM on two hosts: the bytes of one process on this machine."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.lab import ROOT, Lab, wait_for
from tests.tiny import WORDS
from transpooler.common import sha256_of
from transpooler.data_pipeline.shards.verify import find_problems

pytestmark = pytest.mark.slow
TASKS = 3
DEADLINE_S = 300
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two training files of several tasks each, and held-out documents that every task needs."""
    folder, draw = tmp_path_factory.mktemp("array"), random.Random(0)
    sources = {"train": ["a.jsonl", "b.jsonl"], "test": ["test.jsonl"]}
    for name in (name for names in sources.values() for name in names):
        texts = [draw.choices(WORDS, k=draw.randint(60, 200)) for _ in range(8 if name == "test.jsonl" else 60)]
        rows = [{"article": " ".join(words), "abstract": " ".join(words[:9])} for words in texts]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = folder / "prepare.yaml"
    config.write_text(
        json.dumps(
            {
                "prepare": {
                    "sources": {split: [str(folder / name) for name in names] for split, names in sources.items()},
                    "tokenizer": {"vocab_size": 300},
                    "clean": {"near_duplicates": True},
                    "task_mib": 0.01,
                    "shard_size_mib": 0.05,
                    "workers": 1,
                }
            }
        ),
        encoding="utf-8",
    )
    return [str(config), f"prepare.output={folder / 'one'}"]


def test_an_array_gives_the_bytes_of_one_process(slurm: Lab, settings: list[str]) -> None:
    """The two lines of docs/preparing.md; the second job is held until we have looked at the first one's work."""
    alone = subprocess.run(
        [sys.executable, "-m", "transpooler", "prepare", *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr[-3000:]
    folder = Path(settings[0]).parent
    output = folder / "many"
    command = shlex.join([sys.executable, "-m", "transpooler", "prepare", settings[0], f"prepare.output={output}"])
    array = _submit(slurm, f"--array=1-{TASKS}", "--exclusive", f"--output={folder}/array-%a.log", "--wrap", command)
    rest = _submit(slurm, f"--dependency=afterok:{array}", "--hold", f"--output={folder}/rest.log", "--wrap", command)
    logs = [folder / f"array-{task}.log" for task in range(1, TASKS + 1)]
    try:
        wait_for(
            lambda: len(states := _states(slurm, array)) == TASKS and set(states) <= ENDED, "the array", DEADLINE_S
        )
        assert set(_states(slurm, array)) == {"COMPLETED"}, [log.read_text() for log in logs]
        for task, log in enumerate(logs):
            assert f"array task {task} of {TASKS}: done" in log.read_text()
        assert not output.exists()
        assert len(list(folder.glob("many.incomplete/parts/train/*/*.npz"))) > 2 * TASKS
        slurm.run(0, ["scontrol", "release", rest])
        wait_for(lambda: set(_states(slurm, rest)) <= ENDED, "the job that puts it together", DEADLINE_S)
        assert _states(slurm, rest) == ["COMPLETED"], (folder / "rest.log").read_text()
    finally:
        slurm.run(0, ["scancel", array, rest])
    assert "going on with what an earlier run left" in (folder / "rest.log").read_text()
    assert not list(find_problems(output))
    assert _tree(output) == _tree(folder / "one")


def _submit(slurm: Lab, *arguments: str) -> str:
    code, output = slurm.run(0, ["sbatch", "--parsable", "-p", "main", *arguments])
    assert code == 0, output
    return output.split()[-1]


def _states(slurm: Lab, job: str) -> list[str]:
    """States of a job, or of all tasks of an array; tasks that wait together are one line."""
    try:
        output = slurm.run(0, ["scontrol", "show", "job", "-o", job], timeout_s=30)[1]
    except subprocess.TimeoutExpired:
        return ["UNKNOWN"]
    return re.findall(r"JobState=(\w+)", output)


def _tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}

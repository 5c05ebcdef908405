"""Local ranks through DeepSpeed's launcher: exit codes, signals, and user errors printed once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from transpooler.common import USER_ERROR, free_port, read_json, start_of
from transpooler.launch.ranks import local
from transpooler.trainer.run_folder import RunFolder

PYTHON = (sys.executable, "-m")
ENGINES = {
    "torchrun": (*PYTHON, "torch.distributed.run", "--nproc-per-node=2", "--master-port=PORT", "--no-python"),
    "deepspeed": (
        *(*PYTHON, "deepspeed.launcher.runner", "--hostfile", os.devnull, "--num_accelerators=2"),
        *("--master_port=PORT", "--no_local_rank", "--no_python"),
    ),
    "openmpi": ("mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", "2"),
}
START = (
    "import sys; from transpooler.launch.ranks import local; sys.exit(local.run_ranks(2, sys.argv[2:], sys.argv[1]))"
)


def start(module: str, *arguments: str, path: Path = ROOT) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", START, module, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_environment_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(local, "_has_cuda", lambda: False)
    environment = local.rank_environment(3)
    assert (environment["OMP_NUM_THREADS"], environment["DS_ACCELERATOR"]) == ("2", "cpu")
    assert environment["PYTHONSAFEPATH"] == "1"
    monkeypatch.setattr(local, "_has_cuda", lambda: True)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert "DS_ACCELERATOR" not in local.rank_environment(3)


def test_a_mistake_that_every_rank_sees_is_printed_once(tmp_path: Path) -> None:
    process = start("transpooler.launch.train", str(tmp_path / "absent.yaml"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("absent.yaml: no such configuration file") == 1
    assert "Traceback" not in err


STUB = """\
import os, pathlib, signal, sys, time
from transpooler.launch.exits import run_continued
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
def stop(*_):
    time.sleep(1)
    (folder / f"saved{rank}").touch()
    sys.exit(75)
def work():
    (folder / f"{os.getpid()}-ready{rank}-of-{os.environ['WORLD_SIZE']}").touch()
    time.sleep(100)
if sys.argv[2] == "deaf":
    (folder / f"ready{rank}-of-2").touch()
    time.sleep(1)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, stop)
sys.exit(run_continued(work) if sys.argv[2] == "ours" else work())
"""


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [("deaf", signal.SIGTERM, 75), ("", signal.SIGINT, 130), ("", signal.SIGHUP, 75)],
)
def test_the_end_reaches_the_ranks_and_their_code_the_caller(tmp_path: Path, kind: str, number: int, code: int) -> None:
    """Ranks that do not listen yet, too; the caller hears of the end when they have saved."""
    (tmp_path / "stub_rank.py").write_text(STUB)
    process = start("stub_rank", str(tmp_path), kind, path=tmp_path)
    try:
        wait_until_ready(process, tmp_path)
        process.send_signal(number)
        process.wait(60)
        assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]
        assert process.returncode == code, process.communicate()[1]
    finally:
        process.kill()


def test_no_rank_outlives_its_launcher(tmp_path: Path) -> None:
    (tmp_path / "stub_rank.py").write_text(STUB)
    process = start("stub_rank", str(tmp_path), "ours", path=tmp_path)
    wait_until_ready(process, tmp_path)
    process.kill()
    process.communicate(timeout=60)  # until all that hold its pipes have ended
    ranks = [int(path.name.partition("-")[0]) for path in tmp_path.glob("*-ready*")]
    assert [start_of(pid) for pid in ranks] == [None, None]


def test_a_killed_rank_ends_the_others_and_the_launcher(tmp_path: Path) -> None:
    (tmp_path / "stub_rank.py").write_text(STUB)
    process = start("stub_rank", str(tmp_path), "ours", path=tmp_path)
    wait_until_ready(process, tmp_path)
    ranks = {path.name: int(path.name.partition("-")[0]) for path in tmp_path.glob("*-ready*")}
    os.kill(next(pid for name, pid in ranks.items() if "-ready1-" in name), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode not in (0, USER_ERROR)
    assert [start_of(pid) for pid in ranks.values()] == [None, None]


def wait_until_ready(process: subprocess.Popen[str], folder: Path) -> None:
    while process.poll() is None and len(list(folder.glob("*ready*-of-2"))) < 2:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_itself_finds_its_rank(engine: str, tiny_settings: list[str], tmp_path: Path) -> None:
    command = [word.replace("PORT", str(free_port())) for word in ENGINES[engine]]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}; .ci/run installs it")
    program = [str(Path(sys.executable).with_name("transpooler")), "train", *tiny_settings, f"run={tmp_path}"]
    more = ["train.steps=3", "train.checkpoint_every_steps=3", "train.evaluate_every_steps=0"]
    finished = subprocess.run(
        [*command, *program, *more],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    run = RunFolder(tmp_path)
    assert read_json(run.checkpoint(3) / "run.json")["world_size"] == 2, "one job of two ranks, not two jobs"
    assert run.export_config.is_file()

"""What a stranger installs: a wheel in a bare environment, used beside files of his own named like our folders."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.paths import ROOT

LEFT_OUT = (".git", ".venv", "build", "bench", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
TINY = [
    "data={max_source_tokens: 96, max_target_tokens: 24, batch_size: 4}",
    "model={d_model: 32, num_heads: 2, ffn_dim: 64, block_size: 16, encoder_layers: 2, decoder_layers: 1}",
    "model.pooling=[{after_layer: 1, length: 32}, {after_layer: 2, length: 8}]",
    "train={steps: 3, evaluate_every_steps: 3, checkpoint_every_steps: 3, tensorboard: false}",
    "optimizer.warmup_steps=1",
    "generation={max_new_tokens: 8, min_new_tokens: 0, num_beams: 1}",
    "engine.micro_batch_size=2",
]
THE_USERS_OWN = "raise RuntimeError('a file of the working directory was imported')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built in a copy of it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment that holds the wheel; its dependencies are those that the tests run with."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    # A path in a .pth file is searched, but .pth files in it are not read: our own editable install stays unseen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with files named like our folders, and documents."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("model.py", "trainer.py"):
        (folder / name).write_text(THE_USERS_OWN)
    for name in ("common", "launch", "benchmarks", "data_pipeline"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(THE_USERS_OWN)
    (folder / "transpooler.yaml").write_text("mine: true\n")
    with open(folder / "papers.jsonl", "w", encoding="utf-8") as file:
        draw = random.Random(0)
        for number in range(60):
            words = draw.choices([f"word{each}" for each in range(50)], k=60)
            row = {"id": str(number), "article": " ".join(words) + ".", "abstract": " ".join(words[:9]) + "."}
            file.write(json.dumps(row) + "\n")
    return folder


def run(programs: Path, here: Path, *command: str) -> str:
    """Standard output and error of a program of the environment, started in the working folder."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # Another ninja than the one that built the operators would build them anew.
    environment["PATH"] = os.pathsep.join([str(programs), str(Path(sys.executable).parent), environment["PATH"]])
    program, *arguments = command
    done = subprocess.run(
        [programs / program, *arguments], cwd=here, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def test_it_installs_one_name_with_everything_that_it_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"transpooler"}
    code = [
        path
        for path in ROOT.glob("[a-z]*/**/*")
        if path.suffix in {".py", ".yaml", ".cpp", ".h", ".html", ".css", ".js"}
    ]
    folders = ("common", "model", "data_pipeline", "trainer", "launch", "benchmarks", "configs")
    wanted = {f"transpooler/{path.relative_to(ROOT)}" for path in code if path.relative_to(ROOT).parts[0] in folders}
    assert len(wanted) > 150
    assert wanted - set(names) == set()


def test_the_package_is_the_installed_one(programs: Path, here: Path) -> None:
    found = run(programs, here, "python", "-P", "-c", "import transpooler; print(transpooler.__file__)")
    assert str(programs.parent) in found
    names = "import transpooler; [getattr(transpooler, name) for name in transpooler.__all__]; print('all there')"
    assert "all there" in run(programs, here, "python", "-P", "-c", names)


def test_presets_are_found_by_name(programs: Path, here: Path) -> None:
    assert "encoder_layers" in run(programs, here, "transpooler", "train", "pyramidion", "--print-config")
    assert "encoder_layers" in run(programs, here, "python", "-m", "transpooler", "train", "modern", "--print-config")
    assert "article_text" in run(programs, here, "transpooler", "prepare", "corpora/arxiv", "--print-config")


@pytest.mark.slow
def test_demo_launch_and_torchrun_train_beside_the_users_files(programs: Path, here: Path) -> None:
    demo = ["demo", "--data", "papers.jsonl", "--output", "demo", "--processes", "1"]
    output = run(programs, here, "transpooler", *demo, "prepare.tokenizer.vocab_size=300", *TINY)  # two trainings
    assert (here / "demo" / "report.html").is_file()
    assert "held-out loss" in output
    settings = [*TINY, "data.shards=demo/shards"]
    run(programs, here, "transpooler", "launch", "local", *settings, "run=launched", "cluster.processes_per_node=1")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    run(programs, here, "python", *torchrun, "-m", "transpooler.launch.train", *settings, "run=torchrun")
    for name in ("launched", "torchrun"):
        assert (here / name / "export" / "config.json").is_file()


@pytest.mark.slow
def test_a_benchmark_finds_its_presets(programs: Path, here: Path) -> None:
    cell = [
        "--architectures",
        "transpooler",
        "--lengths",
        "64",
        "--phases",
        "train",
        "--repeats",
        "1",
        "--output",
        "speed",
    ]
    small = [
        part
        for key in ("d_model=32", "num_heads=2", "ffn_dim=64", "block_size=16")
        for part in ("--set", f"model.{key}")
    ]
    assert "transpooler" in run(programs, here, "transpooler", "bench", "speed", *cell, *small)

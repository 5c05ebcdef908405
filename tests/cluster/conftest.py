"""Several hosts on this machine, a small corpus, the demo's configuration cut short, and the run to compare with."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.lab import NEEDED, ROOT, SLURM_NEEDED, Lab, lab, why_not
from tests.cluster.runs import STEPS, Runs
from tests.tiny import write_corpus


@pytest.fixture(scope="session")
def cluster() -> Iterator[Lab]:
    """A head and two workers."""
    if reason := why_not(NEEDED):
        pytest.skip(reason)
    with lab(workers=2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def slurm(cluster: Lab) -> Lab:
    """The cluster with a SLURM on it."""
    if reason := why_not(SLURM_NEEDED):
        pytest.skip(reason)
    cluster.slurm_up()
    return cluster


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The demo's fine-tuning configuration on 24 documents, and its undisturbed run: two ranks on this machine."""
    folder = tmp_path_factory.mktemp("cluster")
    corpus = write_corpus(folder, {"train": 24, "validation": 2, "test": 2})
    sources = {split: [path] for split, path in corpus.items()}
    config = folder / "run.yaml"
    config.write_text(
        json.dumps(
            {
                "prepare": {"output": str(folder / "shards"), "sources": sources, "tokenizer": {"vocab_size": 300}},
                "data": {"shards": str(folder / "shards"), "batch_size": 4, "length_bucket_width": None},
                "engine": {"micro_batch_size": 1},
                "optimizer": {"warmup_steps": 5},
                "train": {
                    "steps": STEPS,
                    "checkpoint_every_steps": 5,
                    "keep_last_checkpoints": 2,
                    "log_every_steps": 1,
                    "evaluate_every_steps": 0,
                    "tensorboard": False,
                },
                "cluster": {"heartbeat_timeout_s": 10, "restart_delay_s": 1, "max_restart_delay_s": 4},
            }
        ),
        encoding="utf-8",
    )
    presets = [str(ROOT / "configs" / name) for name in ("demo.yaml", "demo_finetune.yaml")]
    found = Runs(folder, [*presets, str(config)])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in (
        [sys.executable, "-m", "transpooler", "prepare", *found.settings],
        found.command("local", "undisturbed", "cluster.processes_per_node=2"),
    ):
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr[-3000:]
    return found


@pytest.fixture(scope="session")
def hostfile(cluster: Lab, runs: Runs) -> str:
    """The workers, a rank each."""
    path = runs.folder / "hosts"
    path.write_text(f"{cluster.host(1)} slots=1\n{cluster.host(2)} slots=1\n")
    return f"cluster.hostfile={path}"

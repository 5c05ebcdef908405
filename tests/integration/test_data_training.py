"""Real ranks on real shards: `order` foretells a run, damage ends all ranks or is counted, token budgets train."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pytest

from transpooler.launch.cli import main
from transpooler.trainer.metrics import read_metrics

QUIET = "{steps: 12, checkpoint_every_steps: 100, evaluate_every_steps: 0, log_every_steps: 1, tensorboard: false}"


@pytest.fixture
def settings(tiny_settings):
    return [*tiny_settings, f"train={QUIET}", "engine.zero_stage=2"]


def rows_of(run: Path) -> list[dict]:
    return [row for row in read_metrics(run) if row["split"] == "train"]


def printed_order(capsys, *arguments: str) -> list[dict]:
    assert main(["order", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def copied(shards: Path, folder: Path) -> Path:
    shutil.copytree(shards, folder)
    return folder


@pytest.mark.parametrize("world_size", [1, 2])
def test_order_foretells_the_ledger_of_a_run(settings, tmp_path, capsys, world_size):
    run = tmp_path / "run"
    settings = [*settings, "data.batch_tokens=400", "data.micro_batch_tokens=100"]
    job = forked.train(world_size, [*settings, f"run={run}"], tmp_path / "log.txt")
    assert job.codes() == [0] * world_size, job.output()
    order = printed_order(capsys, str(run), "--steps", "12", "--ledger")
    rows = rows_of(run)
    assert [(row["step"], row["epoch"], row["ledger"]) for row in rows] == [
        (line["step"], line["epoch"], line["ledger"]) for line in order
    ]
    later = printed_order(capsys, str(run), "--from-step", "7", "--steps", "5")
    assert [line["keys"] for line in later] == [line["keys"] for line in order[7:]]
    assert [line["step"] for line in later] == [8, 9, 10, 11, 12]
    assert all(0 <= row["data_wait_share"] <= 1 for row in rows)
    assert max(row["padding_share"] for row in rows[:-1]) < 0.5


def test_a_damaged_shard_ends_all_ranks_with_its_name(settings, shards, tmp_path):
    """A token member's header is overwritten: only the rank that reads this document sees it."""
    copy = copied(shards, tmp_path / "copy")
    damage_document(copy)
    job = forked.train(2, [*settings, f"data.shards={copy}", f"run={tmp_path / 'run'}"], tmp_path / "log.txt")
    assert job.codes(60) == [2, 2], job.output()
    assert job.output().count("train-000000.tar: damaged shard: document 7 cannot be read") == 2
    assert "Traceback" not in job.output()


def test_shards_that_one_rank_misses_end_all_ranks(settings, shards, tmp_path):
    """Each rank has a working folder of its own, as on two hosts; the second has no shards."""
    copied(shards, tmp_path / "host0/shards")
    (tmp_path / "host1").mkdir()
    values = ["data.shards=shards", f"run={tmp_path / 'run'}"]
    job = forked.train(2, [*settings, *values], tmp_path / "log.txt", partial(_go_to_host, tmp_path))
    assert job.codes(60) == [2, 2], job.output()
    assert job.output().count("shards/train: no shards here (no index.json)") == 2


def _go_to_host(folder: Path) -> None:
    os.chdir(folder / f"host{os.environ['RANK']}")


def test_damaged_documents_are_left_out_and_counted_where_allowed(settings, shards, tmp_path):
    copy = copied(shards, tmp_path / "copy")
    damage_document(copy)
    values = [f"data.shards={copy}", "data.max_damaged_documents=5", f"run={tmp_path / 'run'}"]
    job = forked.train(2, [*settings, *values], tmp_path / "log.txt")
    assert job.codes() == [0, 0], job.output()
    # 12 steps are 2.4 epochs of 5 steps each.
    count = rows_of(tmp_path / "run")[-1]["damaged_documents"]
    assert count in (2, 3)
    more = ["train.steps=17", f"data.max_damaged_documents={count}"]
    job = forked.train(2, [*settings, *values, *more], tmp_path / "again.txt")
    assert job.codes() == [2, 2], "what was left out before the resume counts"
    assert f"({count + 1} damaged documents; at most {count} allowed)" in job.output()


def damage_document(folder: Path, number: int = 7) -> None:
    """Of the training split of shards."""
    row = np.load(folder / "train/documents.npy")[number]
    with open(folder / "train/train-000000.tar", "r+b") as file:
        file.seek(int(row["source_offset"]))
        file.write(b"not a .npy file")

"""Evaluation on several ranks, in the loop and on its own: the numbers of one process, under ZeRO 2 and 3."""

import json
import sys
from pathlib import Path

import forked
import pytest

from transpooler.common import read_json
from transpooler.launch.cli import main
from transpooler.trainer.metrics import read_metrics
from transpooler.trainer.run_folder import RunFolder

IN_LOOP = [
    *("train.steps=4", "train.evaluate_every_steps=1", "train.checkpoint_every_steps=4", "train.generate_documents=5"),
    *("train.keep_best_checkpoint=true", "train.keep_last_checkpoints=1", "model.dropout=0"),
    *("generation.batch_size=2", "generation.num_beams=2", "generation.max_new_tokens=12"),
    # The second step wrecks the model, so that the best evaluation is the first.
    *("optimizer.learning_rate=3", "optimizer.warmup_steps=0", "optimizer.schedule=constant", "train.export_best=true"),
]


@pytest.mark.parametrize("stage", [2, 3])
def test_evaluation_in_the_loop_and_the_best_checkpoint(stage, tiny_settings, tmp_path):
    """5 documents in batches of 2 over 2 ranks: one rank has a batch more, so under ZeRO 3 the other must keep up."""
    rows = {}
    for processes in (1, 2):
        run = tmp_path / f"ranks{processes}"
        settings = [*tiny_settings, *IN_LOOP, f"run={run}", f"engine.zero_stage={stage}"]
        job = forked.train(processes, settings, tmp_path / "log.txt")
        assert job.codes() == [0] * processes, job.output()
        rows[processes] = [row for row in read_metrics(run) if row["split"] == "validation"]
    assert [row["step"] for row in rows[2]] == [1, 2, 3, 4]
    for one, two in zip(rows[1], rows[2], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert {"rouge1", "rouge2", "rougeL", "rougeLsum"} <= rows[2][0].keys()
    assert rows[2][0]["rouge1"] == pytest.approx(rows[1][0]["rouge1"], abs=1e-6)
    best = min(rows[2], key=lambda row: row["loss"])["step"]
    assert best < 4
    assert RunFolder(run).checkpoint_steps() == [best, 4]
    assert (run / "checkpoints" / "best").read_text() == f"global_step{best}"
    assert f"trained for {best} steps" in (run / "export" / "README.md").read_text(encoding="utf-8")


def test_patience_stops_a_run_and_evaluate_gives_the_same_numbers_on_every_number_of_ranks(tiny_settings, tmp_path):
    run = tmp_path / "run"
    settings = [*tiny_settings, *IN_LOOP, f"run={run}", "train.steps=30", "train.patience=2"]
    settings += ["train.generate_documents=0", "optimizer.learning_rate=100"]
    assert forked.train(1, settings, tmp_path / "log.txt").codes() == [0]
    steps = [row["step"] for row in read_metrics(run) if row["split"] == "validation"]
    assert len(steps) < 10
    assert (run / "export" / "config.json").is_file()
    before = (run / "metrics.jsonl").read_bytes()
    assert forked.train(1, settings, tmp_path / "log.txt").codes() == [0]  # trained already
    assert (run / "metrics.jsonl").read_bytes() == before
    _a_loss_that_is_low_enough_stops_a_run(run, settings, tmp_path)

    outputs = {}
    for processes in (1, 2, 3):
        folder = tmp_path / f"evaluated{processes}"
        command = ["evaluate", str(run), "--output", str(folder)]
        if processes == 2:  # the whole command, with its launcher; ranks alone show the same for the others
            assert main([*command, "--processes", str(processes)]) == 0
        else:
            assert forked.command(processes, command, tmp_path / "log.txt").codes() == [0] * processes
        outputs[processes] = [(folder / name).read_bytes() for name in ("metrics.json", "generated.jsonl")]
    assert json.loads(outputs[1][0])["num_documents"] == 5
    assert outputs[1] == outputs[2] == outputs[3]
    _fail_where_one_rank_does(run, tmp_path)
    command = ["evaluate", str(run), "evaluation.max_documents=2", "generation.max_new_tokens=4", "--keep", "4,8,0.25"]
    assert forked.command(1, command, tmp_path / "log.txt").codes() == [0]
    kept = {item.root.name: read_json(item.metrics) for item in RunFolder(run).finished_evaluations()}
    assert {name: found["kept_tokens"] for name, found in kept.items()} == {
        "test-keep4": 4, "test-keep8": 8, "test-keep0.25": 8,  # a quarter of the 32 that the first stage keeps
    }  # fmt: skip


METRIC = """
import os
def f(document, reference, summary):
    if os.environ["RANK"] == "1" and summary != reference:
        raise ValueError("not here")
    return len(summary)
"""


def _fail_where_one_rank_does(run: Path, tmp_path: Path) -> None:
    """A metric that fails on one rank ends all of them with its document; none waits for the one that has gone."""
    (tmp_path / "metric_of_ranks.py").write_text(METRIC)
    for processes, code in ((2, 2), (1, 0)):
        folder = tmp_path / f"measured{processes}"
        command = ["evaluate", str(run), "--output", str(folder), "evaluation.metrics=[metric_of_ranks:f]"]
        job = forked.Job(processes, _command_beside, (str(tmp_path), command), tmp_path / "metric.txt")
        assert job.codes() == [code] * processes, job.output()
        assert (folder / "metrics.json").is_file() == (code == 0)
    error = "evaluation.metrics: metric_of_ranks:f failed on document "
    assert error in job.output()
    assert "ValueError: not here (rank 1)" in job.output()


def _command_beside(folder: str, arguments: list[str]) -> int:
    sys.path.insert(0, folder)
    return main(arguments)


def _a_loss_that_is_low_enough_stops_a_run(run, settings, tmp_path):
    rows = [row for row in read_metrics(run) if row["split"] == "validation"]
    other = tmp_path / "target"
    settings = [*settings, f"run={other}", f"train.target_loss={rows[0]['loss'] + 1e-3}"]
    assert forked.train(1, settings, tmp_path / "log.txt").codes() == [0]
    assert [row["step"] for row in read_metrics(other) if row["split"] == "validation"] == [rows[0]["step"]]
    assert (other / "export" / "config.json").is_file()

"""`transpooler bench speed`: what is measured again, and ratios that agree with the raw cells."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT
from transpooler.benchmarks.speed.architectures import ENTRIES, build
from transpooler.benchmarks.speed.bench import write_outputs
from transpooler.benchmarks.speed.goals import judge_goals
from transpooler.benchmarks.speed.plots import fit_exponent, format_range
from transpooler.benchmarks.speed.run import find_result
from transpooler.benchmarks.speed.settings import (
    Cell,
    Limits,
    Settings,
    keep_settings,
    make_result,
    parse_lengths,
    parse_phases,
)
from transpooler.benchmarks.speed.table import format_cost, make_rows, print_tables
from transpooler.benchmarks.speed.work import count_flops
from transpooler.common import UserError, write_json
from transpooler.launch.cli import main

TINY = ("model.d_model=32", "model.num_heads=2", "model.ffn_dim=64", "model.block_size=16")
SETTINGS = Settings(target_tokens=4, num_beams=2, vocab_size=100, overrides=TINY)


def test_a_cell_that_breaks_says_why_and_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell(architecture="blockwise", length=64, phase="train")
    write_json(cell.path(tmp_path), make_result(cell, "failed", "RuntimeError: out of luck"))
    assert find_result(cell, Limits(), tmp_path) is None
    write_json(cell.path(tmp_path), make_result(cell, "ok", train_step_s=1.0, train_step_s_repeats=5))
    assert find_result(cell, Limits(), tmp_path)


def test_operations_are_counted_as_one_counts_by_hand() -> None:
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    weight = torch.randn(8, 4)
    found = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k) @ weight)
    attention = 2 * 2 * (2 * 3 * 5 * 8)  # scores and values; a multiply-add is two operations
    assert found == {"all": attention + 2 * (2 * 3) * 8 * 4, "attention": attention}


def test_ratios_verdicts_and_gaps() -> None:
    cells = [
        make_result(Cell(architecture="deep_blockwise", length=8192, phase="train"), "ok", train_step_s=9.0),
        make_result(Cell(architecture="deep_pyramidion", length=8192, phase="train"), "ok", train_step_s=4.5),
        make_result(Cell(architecture="deep_vanilla", length=8192, phase="train"), "out_of_memory", "over 4 GiB"),
        make_result(Cell(architecture="vanilla", length=8192, phase="train"), "ok", train_step_s=8.0),
        make_result(Cell(architecture="pyramid24", length=8192, phase="train"), "ok", train_step_s=10.0),
    ]
    found = {row["architecture"]: row for row in make_rows(cells)}
    assert found["deep_pyramidion"]["train_step_s_vs_blockwise"] == 2
    assert "train_step_s_vs_vanilla" not in found["deep_pyramidion"]
    assert found["pyramid24"]["train_step_s_vs_vanilla"] == 0.8
    assert format_cost(found["deep_vanilla"], "train_step_s") == "out of memory"
    assert format_cost(found["deep_pyramidion"], "train_step_s") == "4.50 s (2.0/-)"
    lines = judge_goals(list(found.values()))
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["paper's number reached", "missed"]
    print_tables(list(found.values()))


def test_exponents_are_slopes_of_logarithms() -> None:
    lengths = [1000, 2000, 8000]
    assert fit_exponent(lengths, [3e-6 * length**1.7 for length in lengths]) == pytest.approx(1.7)
    assert fit_exponent([1000], [1.0]) is None


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.source in ("led", "longt5")])
def test_models_of_transformers_have_our_width_and_depth(name: str) -> None:
    with torch.device("meta"):
        theirs = build(name, length=1024, target_tokens=16, vocab_size=100)
    layers = ENTRIES[name].layers
    assert theirs.get_input_embeddings().weight.shape == (100, 512)  # type: ignore[operator]
    blocks = [theirs.get_encoder(), theirs.get_decoder()]  # type: ignore[operator]
    assert tuple(len(getattr(stack, "layers", getattr(stack, "block", []))) for stack in blocks) == layers


def test_lengths_and_phases() -> None:
    assert parse_lengths("8k,8192, 2K ") == [8192, 2048]
    assert parse_phases("infer, train,infer") == ["infer", "train"]
    for parse, text, message in ((parse_lengths, "8q", "--lengths: '8q'"), (parse_phases, "fit", "--phases: 'fit'")):
        with pytest.raises(UserError, match=message):
            parse(text)


def test_one_folder_holds_one_kind_of_measurement(tmp_path: Path) -> None:
    other = Settings(target_tokens=4, num_beams=2, vocab_size=100, overrides=TINY, batch_size=2)
    cell = Cell(architecture="blockwise", length=64, phase="train")
    keep_settings(tmp_path, other)
    write_json(cell.path(tmp_path), make_result(cell, "failed", "RuntimeError: out of luck"))
    keep_settings(tmp_path, SETTINGS)  # what failed is no measurement
    write_json(cell.path(tmp_path), make_result(cell, "ok", train_step_s=1.0))
    keep_settings(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="holds measurements with batch_size 1"):
        keep_settings(tmp_path, other)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.nrm=pre", "model.nrm: unknown key; did you mean model.norm?"),
        ("train.steps=3", "settings of the model alone"),
    ],
)
def test_a_wrong_setting_is_found_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    out = tmp_path / "out"
    command = ["bench", "speed", "--architectures", "led, blockwise", "--lengths", "64"]
    code, errors = main([*command, "--set", setting, "--output", str(out)]), capsys.readouterr().err
    assert (code, message in errors) == (2, True), errors
    assert not out.exists()


def test_a_cell_that_was_repeated_less_often_than_asked_is_measured_again(tmp_path: Path) -> None:
    cell = Cell(architecture="blockwise", length=64, phase="infer")
    write_json(cell.path(tmp_path), make_result(cell, "ok", encoder_s_repeats=3, document_s_repeats=1))
    assert find_result(cell, Limits(repeats=1), tmp_path)
    assert find_result(cell, Limits(repeats=2), tmp_path) is None
    # Time allowed no more: it is not tried for ever.
    write_json(cell.path(tmp_path), make_result(cell, "ok", repeats_asked=5, encoder_s_repeats=3, document_s_repeats=1))
    assert find_result(cell, Limits(repeats=5), tmp_path)
    assert find_result(cell, Limits(repeats=6), tmp_path) is None


@pytest.mark.parametrize("text", ['{"status": "o', "[]", '{"status": "ok"}'])
def test_a_torn_cell_says_what_to_do(tmp_path: Path, text: str) -> None:
    cell = Cell(architecture="blockwise", length=64, phase="infer")
    cell.path(tmp_path).parent.mkdir()
    cell.path(tmp_path).write_text(text)
    with pytest.raises(UserError, match=f"{cell.name}.json: .*delete it and run the command again"):
        find_result(cell, Limits(), tmp_path)


def test_what_is_written_to_read_names_the_cells_own_threads_and_commits(tmp_path: Path) -> None:
    machine = {"cpu": "x", "gpu": "none", "cores": 8, "memory_gib": 4, "date": "2026-01-01", "versions": {"torch": "9"}}
    keep_settings(tmp_path, Settings(threads=3))
    for name, step_s in (("blockwise", 2.46813), ("vanilla", 1.0)):
        cell = Cell(architecture=name, length=64, phase="train")
        where = machine | {"threads": 3, "commit": f"commit-of-{name}"}
        write_json(
            cell.path(tmp_path), make_result(cell, "ok", train_step_s=step_s, train_peak_mib=1019.7, environment=where)
        )
    write_outputs(tmp_path)
    text = (tmp_path / "speed.md").read_text()
    assert "- threads: 3" in text
    assert "commit-of-blockwise" in text
    assert "commit-of-vanilla" in text
    assert "| blockwise | 64 | 2.47 s (1.0/0.41) |" in text
    assert "1,020 MiB" in text
    assert "train_step_s" not in text
    assert float(next(csv.DictReader((tmp_path / "speed.csv").open()))["train_step_s"]) == 1.0


def test_plots_label_their_axes_and_the_range_of_a_fit(tmp_path: Path) -> None:
    from matplotlib import pyplot

    from transpooler.benchmarks.speed.plots import draw_panel

    for costs in ((1.1, 1.3, 1.9), (2.0, 60.0, 900.0), (20000.0, 21000.0, 22000.0)):
        figure, axis = pyplot.subplots()
        found = [
            {"architecture": "led", "length": 1024 * 2**n, "train_step_s": cost}
            for n, cost in enumerate(costs, start=1)
        ]
        draw_panel(axis, found, "train_step_s")
        figure.canvas.draw()
        low, high = axis.get_ylim()
        labels = [label.get_text() for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
        assert len(set(labels)) >= 3, labels
        assert [str(line.get_label()).split(" ", 3)[-1] for line in axis.get_lines()] == ["(2k-8k)"]
        pyplot.close(figure)
    assert format_range([2048, 8192]) == "2k and 8k alone"


def test_a_cell_does_not_outlive_its_benchmark() -> None:
    script = (
        "import subprocess, sys, time\n"
        "work = 'import time; from transpooler.benchmarks.speed.cell import die_with_parent as die; die(); '\n"
        "work += 'print(1, flush=True); time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', work], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

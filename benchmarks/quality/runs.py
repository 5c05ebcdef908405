"""The runs of a study: ordinary `transpooler` commands in folders of their own, so that each resumes by itself."""

import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality.study import Arm, Study
from common.errors import UserError
from common.files import atomic_write, read_json, write_json
from common.progress import say
from data_pipeline.shards import ShardDataset
from trainer.config import Config
from trainer.config_loader import load_config, save_config
from trainer.evaluate import evaluate
from trainer.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION_STEPS = 20
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """A command of the study ended with this exit code; it said itself why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where a study lives."""

    study: Study
    shards: Path
    output: Path
    quiet: bool = False

    def run_folder(self, arm: str, seed: int) -> Path:
        return self.output / "runs" / f"{arm}-seed{seed}"


def prepare(place: Workplace, sources: dict[str, Path]) -> None:
    """`transpooler prepare`; it recognises what is there already."""
    values = {"sources": {split: [str(path)] for split, path in sources.items()}, "output": str(place.shards)}
    path = _configuration(place, "prepare", [{"prepare": values}])
    _command(place, ["prepare", str(path)])


def train_arm(place: Workplace, arm: Arm, seed: int) -> Path:
    """Train one arm with one seed, unless that is done; returns its run folder."""
    steps, start = steps_of(place, arm), None
    if arm.start is not None:
        other = Arm(name=arm.start.arm, settings=arm.start.settings)
        first = max(1, round(arm.start.share * steps_of(place, other)))
        steps = max(1, steps - round(arm.start.share * steps))
        # Arms that begin alike share their beginning.
        start = _train(place, other, seed, place.run_folder(f"{other.name}-first{first}", seed), first) / "export"
    return _train(place, arm, seed, place.run_folder(arm.name, seed), steps, init_from=start)


def evaluate_run(run: Path) -> None:
    """What `transpooler evaluate` does, for a trained run, unless its results are newer than the model.

    Runs of other objectives write no summaries: their losses are all there is to compare.
    """
    config = load_config([run / "config.yaml"])
    if config.data.objective != "summarize":
        return
    results = run / "evaluation" / config.evaluation.split / "metrics.json"
    model = run / "export" / "config.json"
    if not results.is_file() or results.stat().st_mtime_ns < model.stat().st_mtime_ns:
        evaluate(config, model_folder=run / "export", output=results.parent)


def steps_of(place: Workplace, arm: Arm) -> int:
    """Steps that the budget pays for; measured once for a budget of minutes, and remembered."""
    kind, amount = place.study.budget
    if kind == "steps":
        return max(1, round(amount))
    config = load_config([_configuration(place, arm.name, [arm.settings])])
    if kind == "source_tokens":
        lengths = ShardDataset(place.shards / config.data.train_split).source_lengths
        tokens = float(lengths.clip(max=config.data.max_source_tokens).mean()) * config.data.batch_size
        return max(1, round(amount / tokens))
    path = place.output / "calibration" / f"{arm.name}.json"
    if path.is_file():
        return int(read_json(path)["steps"])
    run = place.output / "calibration" / arm.name
    quick = {"evaluate_every_steps": 0, "log_every_steps": 5, "init_from": None}
    _train(place, arm, 0, run, CALIBRATION_STEPS, more={"train": quick, "optimizer": {"warmup_steps": 1}})
    times = [row["step_time_s"] for row in read_metrics(run) if row["split"] == "train"]
    step_time_s = statistics.median(times[1:] or times)  # the first window holds the warm-up
    steps = max(1, round(60 * amount / step_time_s))
    write_json(path, {"steps": steps, "step_time_s": step_time_s})
    return steps


def _train(
    place: Workplace,
    arm: Arm,
    seed: int,
    run: Path,
    steps: int,
    *,
    init_from: Path | None = None,
    more: dict[str, Any] | None = None,
) -> Path:
    values: dict[str, Any] = {"run": str(run), "seed": seed, "train": {"steps": steps}}
    if init_from is not None:
        values["train"]["init_from"] = str(init_from)
    path = _configuration(place, run.name, [arm.settings, values, more or {}])
    config = load_config([path])
    if (run / "export" / "config.json").is_file():
        if _what_decides(load_config([run / "config.yaml"])) != _what_decides(config):
            raise UserError(f"{run}: was trained with other settings than {place.study.path}; choose another --output")
        return run
    say(f"{run.name}: {steps} steps")
    _command(place, ["train", str(path), "--processes", str(place.study.processes)])
    return run


def _what_decides(config: Config) -> tuple[Any, ...]:
    """What a trained model depends on; where and how it was trained may change, as between versions of this package."""
    train, engine = config.train, config.engine
    return config.seed, config.model, config.data, config.optimizer, train.steps, train.init_from, engine.precision


def _configuration(place: Workplace, name: str, fragments: Sequence[dict[str, Any]]) -> Path:
    """The resolved configuration of the study's settings and the fragments, as a file."""
    folder = place.output / "configs"
    data = {"data": {"shards": str(place.shards)}}
    paths: list[Path] = list(place.study.configs)
    for number, values in enumerate([place.study.settings, data, *fragments]):
        part = folder / "parts" / f"{name}-{number}.yaml"
        with atomic_write(part) as file:
            yaml.safe_dump(values, file)
        paths.append(part)
    config: Config = load_config(paths)
    save_config(config, folder / f"{name}.yaml")
    return folder / f"{name}.yaml"


def _command(place: Workplace, arguments: Sequence[str]) -> None:
    """Run `transpooler ARGUMENTS`; a request to stop is passed on, so that a run saves itself first."""
    quiet = ["--quiet"] if place.quiet else []
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, "-m", "launch", *arguments, *quiet],
        env=os.environ | {"PYTHONPATH": path},
        # Tables of single runs would be in the way of the study's own.
        stdout=subprocess.DEVNULL,
    )
    try:
        with _passing_on(child):
            code = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code:
        raise Stopped(code if code > 0 else 128 - code)


@contextmanager
def _passing_on(child: subprocess.Popen) -> Iterator[None]:
    previous = {number: signal.signal(number, lambda got, _: child.send_signal(got)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

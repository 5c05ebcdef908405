"""The runs of a study: ordinary `transpooler` commands in folders of their own, so that each resumes by itself."""

import glob
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transpooler.benchmarks import harness
from transpooler.benchmarks.quality.losses import exported, is_current
from transpooler.benchmarks.quality.study import Arm, Study, resolve
from transpooler.common.errors import UserError
from transpooler.common.files import read_json, write_json
from transpooler.common.log import say
from transpooler.common.signals import STOP_SIGNALS, handling
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.trainer.config import Config, load_config, save_config
from transpooler.trainer.evaluation.evaluate import evaluate
from transpooler.trainer.metrics import read_metrics
from transpooler.trainer.run_folder import RunFolder

CALIBRATION_STEPS = 20
ENVIRONMENT_FILE = "environment.json"


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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as the study wants it."""

    folder: Path
    config: Config
    start: "Run | None" = None
    """The run whose weights it begins with."""

    @property
    def is_trained(self) -> bool:
        return exported(self.folder).is_file()

    def is_as_planned(self) -> bool:
        """Whether what was trained, its start included, has these settings."""
        if self.start is not None and self.start.is_trained and not self.start.is_as_planned():
            return False
        return _what_decides(load_config([RunFolder(self.folder).config])) == _what_decides(self.config)


def check(place: Workplace) -> None:
    """UserError for a mistake in any arm, or its start, before the first is trained."""
    for arm in place.study.arms:
        if place.study.budget[0] == "steps":
            plan(place, arm, place.study.seeds[0])
        else:  # steps are known when there are shards
            resolve(place.study, arm.name, [arm.settings])


def check_shards(place: Workplace) -> None:
    """UserError where the folder of shards lacks a split that the study reads."""
    if not place.shards.is_dir():
        raise UserError(f"--shards {place.shards}: no such folder; give one that `transpooler prepare` wrote")
    for arm in place.study.arms:
        config = resolve(place.study, arm.name, [arm.settings])
        others = () if config.data.mixture else (config.data.train_split, config.data.validation_split)
        for split in dict.fromkeys((*others, config.evaluation.split)):
            if split is not None:
                ShardDataset(place.shards / split)


def prepare(place: Workplace, sources: dict[str, Path]) -> None:
    """`transpooler prepare`; it recognises what is there already."""
    values = {"sources": {split: [str(path)] for split, path in sources.items()}, "output": str(place.shards)}
    config = resolve(place.study, place.study.asked[0], [{"prepare": values}])
    _command(place, "prepare", config, "prepare")


def plan(place: Workplace, arm: Arm, seed: int) -> Run:
    """The run of one arm with one seed; arms that begin alike share their beginning."""
    steps, start = steps_of(place, arm), None
    if arm.start is not None:
        other = Arm(name=arm.start.arm, settings=arm.start.settings)
        first = max(1, round(arm.start.share * steps_of(place, other)))
        steps = max(1, steps - round(arm.start.share * steps))
        folder = place.run_folder(f"{other.name}-first{first}", seed)
        start = Run(folder=folder, config=_config(place, f"{arm.name}.start", other, folder, seed, first))
    folder = place.run_folder(arm.name, seed)
    return Run(folder=folder, config=_config(place, arm.name, arm, folder, seed, steps, start), start=start)


def train(place: Workplace, run: Run) -> Path:
    """Train a run, and before it the one that it begins with, unless that is done; returns its folder."""
    if run.start is not None:
        train(place, run.start)
    if run.is_trained:
        if not run.is_as_planned():
            problem = f"was trained with other settings than {place.study.path}"
            raise UserError(f"{run.folder}: {problem}; choose another --output")
        return run.folder
    say(f"{run.folder.name}: {run.config.train.steps} steps")
    _record_environment(run.folder)
    _command(place, "train", run.config, run.folder.name, "--processes", str(place.study.processes))
    return run.folder


def _record_environment(run: Path) -> None:
    """Add commit, versions and machine to those that the run was trained with so far: each start may have others."""
    before = environments(run) if RunFolder(run).config.is_file() else []
    write_json(run / ENVIRONMENT_FILE, [*before, harness.environment()])


def environments(run: Path) -> list[dict[str, Any]]:
    """What a run was trained with, one entry a start of its training."""
    path = run / ENVIRONMENT_FILE
    found: list[dict[str, Any]] = read_json(path) if path.is_file() else [{"commit": "unknown"}]
    return found


def is_evaluated(run: Path) -> bool:
    """Whether a trained run has what `transpooler evaluate` gives, newer than the model.

    Runs of other objectives write no summaries: their losses are all there is to compare.
    """
    config = load_config([RunFolder(run).config])
    results = RunFolder(run).evaluation(config.evaluation.split).metrics
    return not config.data.needs_summaries or is_current(results, run)


def evaluate_run(run: Path) -> None:
    """What `transpooler evaluate` does, for a trained run, unless that is done."""
    if not is_evaluated(run):
        config = load_config([RunFolder(run).config])
        output = RunFolder(run).evaluation(config.evaluation.split).root
        evaluate(config, model_folder=RunFolder(run).export, output=output)


def finished_runs(place: Workplace) -> dict[str, dict[int, Path]]:
    """Arm -> seed -> folder of all runs of the study that are trained and evaluated, asked for now or earlier."""
    found: dict[str, dict[int, Path]] = {}
    for arm in place.study.arms:
        folders = (place.output / "runs").glob(f"{glob.escape(arm.name)}-seed*")
        names = [folder.name.rpartition("-seed")[2] for folder in folders]
        for seed in sorted(int(name) for name in names if name.isdecimal()):
            if not exported(place.run_folder(arm.name, seed)).is_file():
                continue
            run = plan(place, arm, seed)
            if not run.is_as_planned():
                say(f"{run.folder.name}: was trained with other settings than the study's; left out of the table")
            elif is_evaluated(run.folder):
                found.setdefault(arm.name, {})[seed] = run.folder
    return found


def steps_of(place: Workplace, arm: Arm) -> int:
    """Steps that the budget pays for; measured once for a budget of minutes, and remembered."""
    kind, amount = place.study.budget
    if kind == "steps":
        return max(1, round(amount))
    if kind == "source_tokens":
        config = resolve(place.study, arm.name, [arm.settings])
        lengths = ShardDataset(place.shards / config.data.train_split).source_lengths
        tokens = float(lengths.clip(max=config.data.max_source_tokens).mean()) * config.data.batch_size
        return max(1, round(amount / tokens))
    path = place.output / "calibration" / f"{arm.name}.json"
    if path.is_file():
        return int(read_json(path)["steps"])
    folder = place.output / "calibration" / arm.name
    quick = {"train": {"evaluate_every_steps": 0, "log_every_steps": 5}, "optimizer": {"warmup_steps": 1}}
    config = _config(place, arm.name, arm, folder, 0, CALIBRATION_STEPS, more=quick)
    train(place, Run(folder=folder, config=config))
    times = [row["step_time_s"] for row in read_metrics(folder) if row["split"] == "train"]
    step_time_s = statistics.median(times[1:] or times)  # the first window holds the warm-up
    steps = max(1, round(60 * amount / step_time_s))
    write_json(path, {"steps": steps, "step_time_s": step_time_s})
    return steps


def _config(
    place: Workplace,
    who: str,
    arm: Arm,
    folder: Path,
    seed: int,
    steps: int,
    start: Run | None = None,
    more: dict[str, Any] | None = None,
) -> Config:
    """What a run of `arm` is trained with; `who` is named where that is wrong."""
    train = {"steps": steps, "init_from": None if start is None else str(RunFolder(start.folder).export)}
    values = {"run": str(folder), "seed": seed, "train": train}
    return resolve(place.study, who, [{"data": {"shards": str(place.shards)}}, arm.settings, values, more or {}])


def _what_decides(config: Config) -> tuple[Any, ...]:
    """What a trained model depends on; where and how it was trained may change, as between versions of this package."""
    train, engine = config.train, config.engine
    return config.seed, config.model, config.data, config.optimizer, train.steps, train.init_from, engine.precision


def _command(place: Workplace, command: str, config: Config, name: str, *arguments: str) -> None:
    """Run `transpooler COMMAND` on configs/NAME.yaml; a request to stop is passed on, so that a run saves itself."""
    config_path = place.output / "configs" / f"{name}.yaml"
    save_config(config, config_path)
    quiet = ["--quiet"] if place.quiet else []
    child = subprocess.Popen(
        [sys.executable, "-m", "transpooler", command, str(config_path), *arguments, *quiet],
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        # Tables of single runs would be in the way of the study's own.
        stdout=subprocess.DEVNULL,
    )
    try:
        with handling(STOP_SIGNALS, child.send_signal):
            code = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code:
        raise Stopped(code if code > 0 else 128 - code)

"""The runs of a study: ordinary `transpooler` commands in folders of their own, so that each resumes by itself."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transpooler.benchmarks import harness
from transpooler.benchmarks.quality.study import Arm, Study, resolve_config
from transpooler.common import STOP_SIGNALS, UserError, handle_signals, read_json, say, write_json
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.trainer.config import Config, load_config, save_config
from transpooler.trainer.evaluation.evaluate import evaluate
from transpooler.trainer.metrics import read_metrics
from transpooler.trainer.run_folder import EvaluationFolder, RunFolder

CALIBRATION_STEPS = 20
ENVIRONMENT_FILE = "environment.json"
DECISIVE_OF_TRAINING = ("steps", "target_loss", "stages", "init_from", "init_encoder_from", "freeze", "lora")


class CommandFailed(Exception):
    """A command of the study ended with this exit code, and has printed why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A study and its folders."""

    study: Study
    shards: Path
    output: Path
    quiet: bool = False

    def run_folder(self, arm: str, seed: int) -> Path:
        return self.output / "runs" / f"{arm}-seed{seed}"

    def cell_file(self, run: "StudyRun") -> Path:
        return self.output / "cells" / f"{run.name}.json"

    def find_seeds(self, arm: Arm) -> list[int]:
        """The seeds of which there is a run or a cell, finished or not."""
        found = [(arm.trained_as, path.name) for path in (self.output / "runs").glob("*")]
        found += [(arm.name, path.stem) for path in (self.output / "cells").glob("*.json")]
        names = [(name, *file.rpartition("-seed")) for name, file in found]
        return sorted({int(seed) for name, prefix, _, seed in names if name == prefix and seed.isdecimal()})


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A run as the study plans it."""

    name: str
    """Of its cell."""
    folder: Path
    config: Config
    start: "StudyRun | None" = None
    """The run whose weights it begins with."""
    keep: float | None = None
    """What the model keeps when it is evaluated: tokens or a share; None: its largest budget."""

    @property
    def is_trained(self) -> bool:
        return RunFolder(self.folder).export_config.is_file()

    @property
    def settings(self) -> list[dict[str, Any]]:
        """What the trained model depends on, of the run that it begins with, if any, and of its own."""
        before = self.start.settings if self.start else []
        own = decisive_settings(self.config, has_start=bool(before))
        return [*before, own if self.keep is None else own | {"keep": self.keep}]

    def is_as_planned(self) -> bool:
        """Whether the trained model, and the one that it began with, have the settings of the plan."""
        if self.start is not None and self.start.is_trained and not self.start.is_as_planned():
            return False
        has_start, trained = self.start is not None, load_config([RunFolder(self.folder).config])
        return decisive_settings(trained, has_start=has_start) == decisive_settings(self.config, has_start=has_start)

    @property
    def evaluation(self) -> EvaluationFolder:
        """Where the evaluation of its budget lies."""
        split = self.config.evaluation.split
        return RunFolder(self.folder).evaluation(split if self.keep is None else f"{split}-keep{self.keep:g}")

    def list_parts(self) -> list[Path]:
        """Its folders in order of time: that of the run whose weights it began with, if it is there, and its own."""
        before = self.start.list_parts() if self.start else []
        return [*before, self.folder] if RunFolder(self.folder).metrics.is_file() else before


def decisive_settings(config: Config, *, has_start: bool) -> dict[str, Any]:
    """The settings that a trained model depends on, as JSON. Others, such as paths and cadences, may change afterwards.

    has_start: another run of the study hands over its weights, wherever it lies.
    """
    values = asdict(config)
    train = {name: values["train"][name] for name in DECISIVE_OF_TRAINING}
    found = {name: values[name] for name in ("seed", "model", "data", "optimizer")} | {"train": train}
    found["data"] = {name: value for name, value in values["data"].items() if name != "shards"}
    if has_start:
        del train["init_from"]
    plain: dict[str, Any] = json.loads(json.dumps(found | {"precision": config.engine.precision}))
    return plain


def agree(ours: Any, theirs: Any) -> bool:
    """Whether settings of several versions agree: a key that one of them lacks says nothing."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(agree(ours[key], theirs[key]) for key in ours.keys() & theirs.keys())
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(agree, ours, theirs))
    return bool(ours == theirs)


def check_study(place: Workplace) -> None:
    """Raise UserError for a mistake in any arm or in its start, before anything is trained."""
    for arm in place.study.arms:
        if (arm.budget or place.study.budget)[0] == "steps":
            plan_run(place, arm, place.study.seeds[0])
        else:  # steps are known when there are shards
            resolve_config(place.study, arm.name, [arm.settings])


def check_shards(place: Workplace) -> None:
    """Raise UserError if the folder of shards lacks a split that the study reads."""
    if not place.shards.is_dir():
        raise UserError(f"--shards {place.shards}: no such folder; give one that `transpooler prepare` wrote")
    for arm in place.study.arms:
        config = resolve_config(place.study, arm.name, [arm.settings])
        others = () if config.data.mixture else (config.data.train_split, config.data.validation_split)
        for split in dict.fromkeys((*others, config.evaluation.split)):
            if split is not None:
                ShardDataset(place.shards / split)


def prepare(place: Workplace, sources: dict[str, Path]) -> None:
    """Run `transpooler prepare`, which recognises what it has written before."""
    values = {"sources": {split: [str(path)] for split, path in sources.items()}, "output": str(place.shards)}
    config = resolve_config(place.study, place.study.asked[0], [{"prepare": values}])
    _command(place, "prepare", config, "prepare")


def plan_run(place: Workplace, arm: Arm, seed: int) -> StudyRun:
    """Plan the run of one arm with one seed; arms that begin alike share their first run."""
    steps, start = count_steps(place, arm), None
    if arm.start is not None:
        other = Arm(name=arm.start.arm, settings=arm.start.settings, budget=arm.budget)
        first = arm.start.steps or max(1, round(arm.start.share * count_steps(place, other)))
        steps = max(1, steps - round(arm.start.share * steps))
        until = f"-until{arm.start.loss:g}" if arm.start.loss else ""
        folder = place.run_folder(f"{other.name}-first{first}{until}", seed)
        more = {"train": {"target_loss": arm.start.loss}}
        config = _config(place, f"{arm.name}.start", other, folder, seed, first, more=more)
        start = StudyRun(name=folder.name, folder=folder, config=config)
    folder = place.run_folder(arm.trained_as, seed)
    config = _config(place, arm.name, arm, folder, seed, steps, start)
    return StudyRun(name=f"{arm.name}-seed{seed}", folder=folder, config=config, start=start, keep=arm.keep)


def train(place: Workplace, run: StudyRun) -> None:
    """Train a run, after the one that it begins with, unless they are trained."""
    if run.start is not None:
        train(place, run.start)
        _check_learned(run.start.folder, run.start.config.train.target_loss)
    if run.is_trained:
        if not run.is_as_planned():
            problem = f"was trained with other settings than {place.study.path}"
            raise UserError(f"{run.folder}: {problem}; choose another --output")
        return
    config = run.config
    if run.start is not None:  # it may have been planned before its start was trained
        config = replace(config, train=replace(config.train, init_from=str(RunFolder(run.start.folder).export)))
    say(f"{run.folder.name}: {config.train.steps} steps")
    _record_environment(run.folder)
    _command(place, "train", config, run.folder.name, "--processes", str(place.study.processes))


def _check_learned(run: Path, target_loss: float) -> None:
    """Raise UserError if a run, which others start from, has not reached the loss that they need."""
    losses = [row["loss"] for row in read_metrics(run) if row["split"] == "validation"]
    if target_loss and not min(losses) <= target_loss:
        problem = f"has a held-out loss of {min(losses):.3f}, where its arms start at {target_loss:g}"
        raise UserError(f"{run}: {problem}; give start.steps more, or take another seed (--seeds)")


def _record_environment(run: Path) -> None:
    """Append commit, versions and machine to the run's list: each start of its training may have others."""
    before = read_environments(run) if RunFolder(run).config.is_file() else []
    write_json(run / ENVIRONMENT_FILE, [*before, harness.environment()])


def read_environments(run: Path) -> list[dict[str, Any]]:
    """Read what a run was trained with; one entry for each start of its training."""
    path = run / ENVIRONMENT_FILE
    found: list[dict[str, Any]] = read_json(path) if path.is_file() else [{"commit": "unknown"}]
    return found


def is_current(path: Path, run: Path) -> bool:
    """Whether a result is there and belongs to the run's model: it is no older than that."""
    return path.is_file() and path.stat().st_mtime_ns >= RunFolder(run).export_config.stat().st_mtime_ns


def is_evaluated(run: StudyRun) -> bool:
    """Whether a trained run has results of `transpooler evaluate` that are newer than its model.

    Objectives without summaries need none: their runs are compared by their losses alone.
    """
    return not run.config.data.needs_summaries or is_current(run.evaluation.metrics, run.folder)


def evaluate_run(run: StudyRun) -> None:
    """Evaluate a trained run as `transpooler evaluate` does, unless it is evaluated."""
    if not is_evaluated(run):
        evaluate(run.config, model_folder=RunFolder(run.folder).export, output=run.evaluation.root, keep=run.keep)


def count_steps(place: Workplace, arm: Arm) -> int:
    """Convert the budget of an arm to steps. For minutes, its step time is measured once and remembered."""
    kind, amount = arm.budget or place.study.budget
    if kind == "steps":
        return max(1, round(amount))
    if kind == "source_tokens":
        config = resolve_config(place.study, arm.name, [arm.settings])
        lengths = ShardDataset(place.shards / config.data.train_split).source_lengths
        tokens = float(lengths.clip(max=config.data.max_source_tokens).mean()) * config.data.batch_size
        return max(1, round(amount / tokens))
    path = place.output / "calibration" / f"{arm.trained_as}.json"
    if path.is_file():
        return int(read_json(path)["steps"])
    folder = place.output / "calibration" / arm.trained_as
    quick = {"train": {"evaluate_every_steps": 0, "log_every_steps": 5}, "optimizer": {"warmup_steps": 1}}
    config = _config(place, arm.name, arm, folder, 0, CALIBRATION_STEPS, more=quick)
    train(place, StudyRun(name=folder.name, folder=folder, config=config))
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
    start: StudyRun | None = None,
    more: dict[str, Any] | None = None,
) -> Config:
    """The configuration of a run of `arm`; UserError names `who`."""
    train: dict[str, Any] = {"steps": steps}
    if start is not None:
        # What a model is made of follows from weights; until the start has some, from those that it begins with itself.
        export = str(RunFolder(start.folder).export)
        train["init_from"] = export if start.is_trained else start.config.train.init_from or export
    values = {"run": str(folder), "seed": seed, "train": train}
    return resolve_config(place.study, who, [{"data": {"shards": str(place.shards)}}, arm.settings, values, more or {}])


def _command(place: Workplace, command: str, config: Config, name: str, *arguments: str) -> None:
    """Run `transpooler COMMAND` on configs/NAME.yaml. Signals to stop are forwarded, so that a run saves itself."""
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
        with handle_signals(STOP_SIGNALS, child.send_signal):
            code = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code:
        raise CommandFailed(code if code > 0 else 128 - code)

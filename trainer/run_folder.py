"""Where a run's files lie: the one place that knows the layout of RUN, the folder that `run=...` names.

Only trainer/checkpoint/ knows what is inside a checkpoint. Nothing here needs torch.
"""

from pathlib import Path

from transpooler.common import UserError, local_path

_CHECKPOINT, _ATTEMPT = "global_step", "attempt-"


class RunFolder:
    """The paths of a run, there or not. Nothing is created; only the three listings look at the disk."""

    def __init__(self, root: str | Path) -> None:
        self.root = root = local_path(root)
        self.config = root / "config.yaml"
        """The whole configuration of the latest start; a folder that has it is a run folder."""
        self.metrics = root / "metrics.jsonl"
        self.tensorboard = root / "tensorboard"
        self.profile = root / "profile"
        """Traces, step<N>.json."""
        self.stacks = root / "stacks"
        """What each rank was doing when the watchdog ended it."""
        self.checkpoints = root / "checkpoints"
        self.latest, self.best = self.checkpoints / "latest", self.checkpoints / "best"
        """Text files that hold the name of a checkpoint's folder."""
        self.export = root / "export"
        """The trained model, as `transformers` loads it."""
        self.export_config = self.export / "config.json"
        """There once the run is trained and exported: an export is whole or absent."""
        self.evaluations = root / "evaluation"
        self.report = root / "report.html"
        self.logs = root / "logs"
        """What ranks printed, one file each, and all.log."""
        self.events = root / "events.jsonl"
        """Decisions of the launcher."""
        self.launch = root / "launch"
        self.lock = root / "lock"
        """Held by the one job that trains this run (trainer.guards.run_lock)."""

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of `step`."""
        return self.checkpoints / f"{_CHECKPOINT}{step}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints that are there, valid or not, in ascending order."""
        return _numbers(self.checkpoints, _CHECKPOINT)

    def evaluation(self, name: str) -> "EvaluationFolder":
        """Results of one evaluation; `name` is the split, or SPLIT-untrained."""
        return EvaluationFolder(self.evaluations / name)

    def finished_evaluations(self) -> list["EvaluationFolder"]:
        """Those that have their numbers, by name."""
        return [EvaluationFolder(path.parent) for path in sorted(self.evaluations.glob("*/metrics.json"))]

    def attempt(self, number: int) -> Path:
        """Folder of the launcher's attempt: its plan, and the ranks' signs of life."""
        return self.launch / f"{_ATTEMPT}{number}"

    def attempts(self) -> list[int]:
        """Numbers of the attempts that were made, in ascending order, from 1 over the life of the run."""
        return _numbers(self.launch, _ATTEMPT)


class EvaluationFolder:
    """The paths of what `transpooler evaluate` writes, below a run or wherever --output says."""

    def __init__(self, root: str | Path) -> None:
        self.root = root = local_path(root)
        self.metrics = root / "metrics.json"
        """All numbers; written last."""
        self.generated = root / "generated.jsonl"
        """A line a document: its texts and scores."""
        self.lock = root / "lock"
        """Held by who writes here."""
        self.highlights = root / "highlights.json"
        """What the poolers kept of the first documents."""


def require_run(folder: Path) -> None:
    """UserError unless `folder` is a run folder."""
    if not RunFolder(folder).config.is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml); give the folder that `transpooler train` wrote")


def _numbers(folder: Path, prefix: str) -> list[int]:
    names = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    return sorted(int(name) for name in names if name.isdigit())


def why_no_model(folder: Path) -> str:
    """What is wrong with a folder that was given for a model and has no config.json, and the remedy."""
    if RunFolder(folder).export_config.is_file():
        return f"a run folder, not an exported model; use {RunFolder(folder).export}"
    if folder.is_file():
        return "a file; give the folder that holds it"
    remedy = "train one or run `transpooler export`"
    if not folder.exists() and len(folder.parts) == 1:
        remedy += f", or give an id of the hub, which is OWNER/NAME, such as google-t5/{folder}"
    return f"no exported model there (no config.json); {remedy}"

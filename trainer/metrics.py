"""Metrics of a run: RUN/metrics.jsonl always, TensorBoard and Weights & Biases beside it. Units are in the names."""

import hashlib
import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transpooler.common import UserError, atomic_write
from transpooler.trainer.run_folder import RunFolder

TIMED = frozenset(
    {"step_time_s", "source_tokens_per_s", "model_tflops_per_s", "mfu", "data_wait_share", "peak_memory_mib"}
)
"""Metrics that tell of the machine and the day; a resumed run repeats all others to the bit."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics; [] before the first. A last line cut by a kill is left out.

    Raises UserError for a broken line elsewhere, or one that no run of ours wrote.
    """
    path = RunFolder(run).metrics
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not valid JSON; remove the line") from None
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or not isinstance(row.get("split"), str):
            raise UserError(f"{path}:{number}: has no step and split, so no run wrote it; remove the line")
        rows.append(row)
    return rows


class MetricsWriter:
    """Appends lines to metrics.jsonl and scalars to TensorBoard; made on rank 0 alone."""

    def __init__(
        self,
        run: Path,
        *,
        step: int,
        tensorboard: bool,
        wandb_project: str | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Continue after `step`: lines that a killed run wrote beyond it are removed, since they will be written again.

        `settings`, the whole configuration, goes to Weights & Biases with the run.
        """
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        path = RunFolder(run).metrics
        with atomic_write(path) as file:
            file.writelines(_to_line(row) for row in kept)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)
        self._run = run
        self._tensorboard = self._open_tensorboard(step + 1) if tensorboard else None
        self._wandb: Any = None if wandb_project is None else _start_wandb(run, wandb_project, settings or {})

    def write(self, row: dict[str, Any]) -> None:
        """One line; `row` has step and split, and numbers or strings."""
        try:
            self._file.write(_to_line(row))
        except OSError as error:
            raise UserError(f"{self._file.name}: cannot write: {error.strerror}; free space and rerun") from error
        numbers = {
            f"{row['split']}/{name}": value
            for name, value in row.items()
            if name not in ("step", "split") and isinstance(value, int | float)
        }
        if self._tensorboard is not None:
            try:
                for name, value in numbers.items():
                    self._tensorboard.add_scalar(name, value, row["step"])
            except FileNotFoundError:  # somebody has tidied up
                self._tensorboard = self._open_tensorboard(row["step"])
        if self._wandb is not None:
            self._wandb.log({**numbers, "step": row["step"]})

    def close(self) -> None:
        """Flush and close all of them."""
        self._file.close()
        if self._tensorboard is not None:
            with suppress(FileNotFoundError):
                self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _open_tensorboard(self, first_step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(RunFolder(self._run).tensorboard), purge_step=first_step)


def check_wandb(project: str | None) -> None:
    """UserError where Weights & Biases is wanted and not installed."""
    if project is not None and find_spec("wandb") is None:
        raise UserError("train.wandb_project is set, but wandb is not installed; pip install 'transpooler[wandb]'")


def _start_wandb(run: Path, project: str, settings: dict[str, Any]) -> Any:
    """Start a run of Weights & Biases, or continue that of the same folder: its id is made from the folder's path."""
    import wandb

    name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
    started = wandb.init(project=project, name=run.name, id=name, resume="allow", dir=str(run), config=settings)
    # Our own step: after a resume W&B would refuse steps that it has seen already.
    started.define_metric("*", step_metric="step")
    return started


def _to_line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"

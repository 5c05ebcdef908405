"""Metrics of a run: RUN/metrics.jsonl always, TensorBoard beside it. Units are in the names."""

import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import atomic_write

FILE_NAME = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics; [] before the first. A last line cut by a kill is left out.

    Raises UserError for a broken line elsewhere.
    """
    path = run / FILE_NAME
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not valid JSON; remove the line") from None
    return rows


class MetricsWriter:
    """Appends lines to metrics.jsonl and scalars to TensorBoard; made on rank 0 alone."""

    def __init__(self, run: Path, *, step: int, tensorboard: bool) -> None:
        """Continue after `step`: what a killed run wrote beyond it is removed, since it will be written again."""
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        with atomic_write(run / FILE_NAME) as file:
            file.writelines(_line(row) for row in kept)
        self._file = open(run / FILE_NAME, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)
        self._tensorboard: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """One line; `row` has step and split, and numbers or strings."""
        self._file.write(_line(row))
        if self._tensorboard is not None:
            for name, value in row.items():
                if name not in ("step", "split") and isinstance(value, int | float):
                    self._tensorboard.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"

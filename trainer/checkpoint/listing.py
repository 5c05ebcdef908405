"""The checkpoints of a run as a table for people."""

import time
from pathlib import Path

from transpooler.common import UserError, align, format_duration, read_json
from transpooler.trainer.checkpoint.checkpoint import problems
from transpooler.trainer.run_folder import RunFolder

COLUMNS = ("step", "MiB", "age", "ranks", "ZeRO", "precision", "state")


def describe(run: Path, *, verify: bool) -> str:
    """One line per checkpoint, oldest first; `verify` hashes every file. UserError where there is none."""
    steps = RunFolder(run).checkpoint_steps()
    if not steps:
        raise UserError(f"{run}: has no checkpoint yet; train first")
    rows = [COLUMNS, *(_row(run, step, verify) for step in steps)]
    return "\n".join(align(rows, right=range(len(COLUMNS) - 1)))


def _row(run: Path, step: int, verify: bool) -> tuple[str, ...]:
    folder, latest = RunFolder(run).checkpoint(step), RunFolder(run).latest
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    problem = next(problems(folder, verify=verify), None)
    state = f"broken: {problem}" if problem else "valid" if verify else "complete"
    try:
        facts = read_json(folder / "run.json")
    except UserError:
        facts = {}
    if latest.is_file() and latest.read_text() == folder.name:
        state += " (latest)"
    age = format_duration(max(0.0, time.time() - facts.get("saved_at", folder.stat().st_mtime)))
    return (
        str(step),
        f"{size:.1f}",
        age,
        *(str(facts.get(key, "?")) for key in ("world_size", "zero_stage", "precision")),
        state,
    )

"""Checkpoints that are either whole or not there.

RUN/checkpoints/global_step<N>/ holds DeepSpeed's own files (so that its tools, such as zero_to_fp32, work on it), one
random state per rank, run.json (step, ranks, ZeRO stage, ...) and manifest.json with the size and SHA-256 of each file.
It is written under checkpoints/.incomplete/, fsynced and renamed; `latest`, DeepSpeed's pointer, moves last.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import atomic_write, fsync_folder, read_json, sha256_of, write_json
from common.progress import say
from trainer.state import TrainState

FORMAT = 1
INCOMPLETE = ".incomplete"
PREFIX = "global_step"


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the checkpoints in a run folder, oldest first (whether valid or not)."""
    names = [path.name.removeprefix(PREFIX) for path in (run / "checkpoints").glob(f"{PREFIX}*")]
    return sorted(int(name) for name in names if name.isdigit())


def folder_of(run: Path, step: int) -> Path:
    """Folder of the checkpoint of `step`."""
    return run / "checkpoints" / f"{PREFIX}{step}"


def save(
    engine: Any, state: TrainState, run: Path, facts: dict[str, Any], keep_last: int, best: int | None = None
) -> None:
    """Save on all ranks together; all but the `keep_last` newest checkpoints and that of step `best` are removed.

    `facts` go into run.json: world_size, zero_stage, precision and whatever else a resumed run must agree with.
    """
    rank = torch.distributed.get_rank()
    incomplete, tag = run / "checkpoints" / INCOMPLETE, f"{PREFIX}{state.step}"
    if rank == 0:
        shutil.rmtree(incomplete, ignore_errors=True)
        incomplete.mkdir(parents=True)
    torch.distributed.barrier()
    problem = ""
    try:
        engine.save_checkpoint(str(incomplete), tag=tag, save_latest=False)
        torch.save(_random_state(), incomplete / tag / f"random_rank{rank}.pt")
        torch.distributed.barrier()
        if rank == 0:
            _publish(incomplete / tag, folder_of(run, state.step), {**facts, "state": state.as_dict()})
            _remove_old(run, keep_last, best)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        problem = str(error).splitlines()[0]
    if problem:
        raise UserError(f"{folder_of(run, state.step)}: cannot write the checkpoint: {problem}; free space and rerun")
    torch.distributed.barrier()


def newest_valid(run: Path) -> int | None:
    """Step of the newest checkpoint whose files are all as its manifest says; None if there is none at all.

    What is broken is named loudly and skipped; if nothing valid is left, a UserError.
    """
    steps = checkpoint_steps(run)
    for step in reversed(steps):
        problem = next(problems(folder_of(run, step)), None)
        if problem is None:
            return step
        say(f"WARNING: checkpoint {folder_of(run, step)} is broken ({problem}); trying the one before it")
    if steps:
        raise UserError(f"{run / 'checkpoints'}: none of its checkpoints is valid; remove the folder to start anew")
    return None


def problems(folder: Path) -> Iterator[str]:
    """What is wrong with a checkpoint's files."""
    try:
        manifest = read_json(folder / "manifest.json")
    except UserError as error:
        yield str(error)
        return
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != expected["size_bytes"]:
            yield f"{name} has {path.stat().st_size} bytes instead of {expected['size_bytes']}"
        elif sha256_of(path) != expected["sha256"]:
            yield f"{name} has changed"


def load(engine: Any, run: Path, step: int, facts: dict[str, Any]) -> TrainState:
    """Put the checkpoint of `step` into the engine and the random state; returns the run's state.

    Raises UserError where the run was saved under other `facts`.
    """
    folder = folder_of(run, step)
    saved = read_json(folder / "run.json")
    for key, value in facts.items():
        if saved.get(key) != value:
            raise UserError(
                f"{folder}: saved with {key} = {saved.get(key)}, but this run has {value}; "
                f"resume with {saved.get(key)}, or start a new run from its export (train.init_from)"
            )
    engine.load_checkpoint(str(run / "checkpoints"), tag=folder.name)
    _set_random_state(torch.load(folder / f"random_rank{torch.distributed.get_rank()}.pt", weights_only=True))
    return TrainState(**saved["state"])


def _publish(incomplete: Path, final: Path, facts: dict[str, Any]) -> None:
    """Manifest, fsync, rename, then `latest`. Rank 0 alone, when every rank has written its files."""
    write_json(incomplete / "run.json", {"format": FORMAT, **facts})
    files = sorted(path for path in incomplete.rglob("*") if path.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    entries = {
        str(path.relative_to(incomplete)): {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in files
    }
    write_json(incomplete / "manifest.json", {"format": FORMAT, "files": entries})
    shutil.rmtree(final, ignore_errors=True)  # a broken one of the same step
    os.replace(incomplete, final)
    fsync_folder(final.parent)
    shutil.rmtree(incomplete.parent, ignore_errors=True)
    with atomic_write(final.parent / "latest") as file:
        file.write(final.name)


def _remove_old(run: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the newest and the best, whose name stands in `best`."""
    if best in checkpoint_steps(run):
        with atomic_write(run / "checkpoints" / "best") as file:
            file.write(f"{PREFIX}{best}")
    for step in checkpoint_steps(run)[:-keep_last]:
        if step == best:
            continue
        # Out of the way first, so that a kill cannot leave half a checkpoint under a good name.
        doomed = run / "checkpoints" / f"{INCOMPLETE}.old"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(folder_of(run, step), doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _random_state() -> dict[str, Any]:
    """Dropout's generators; nothing else in training draws from a global one."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0, dtype=torch.uint8)
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]):
        torch.cuda.set_rng_state(states["cuda"])

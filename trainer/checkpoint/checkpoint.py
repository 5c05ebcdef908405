"""Checkpoints that are either whole or not there.

RUN/checkpoints/global_step<N>/ holds DeepSpeed's own files (so that its tools, such as zero_to_fp32 and
ds_to_universal, work on it), one random state per rank, run.json (step, ranks, ZeRO stage, ...) and manifest.json with
the size and SHA-256 of each file. It is written under checkpoints/.incomplete/, each rank syncing and hashing its own
files, and renamed; `latest`, DeepSpeed's pointer, moves last.
"""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from transpooler.common import UserError, atomic_write, fsync_folder, read_json, say, sha256_of, write_json
from transpooler.trainer.checkpoint.files import RecordingFiles, sync_and_hash
from transpooler.trainer.checkpoint.reshard import optimizer_order, restore
from transpooler.trainer.checkpoint.safe_load import load_file, weights_only, without_patterns
from transpooler.trainer.config.train import TrainConfig
from transpooler.trainer.engine.protocol import TrainingEngine
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.state import TrainState

FORMAT = 2
INCOMPLETE = ".incomplete"
RESHARDED = ("world_size", "zero_stage")
"""Facts in which a resumed run may differ from its checkpoint: its states are then resharded."""


def save(engine: TrainingEngine, state: TrainState, run: Path, facts: dict[str, Any], settings: TrainConfig) -> None:
    """Save a checkpoint (a collective), then remove old ones: what stays is said in `settings`.

    `facts` go into run.json: world_size, zero_stage, precision and whatever else a resumed run must agree with.
    Raises UserError on every rank if one rank cannot write.
    """
    started, rank = time.monotonic(), torch.distributed.get_rank()
    folder = RunFolder(run).checkpoint(state.step)
    incomplete, tag = folder.parent / INCOMPLETE, folder.name
    if rank == 0:
        shutil.rmtree(incomplete, ignore_errors=True)
        incomplete.mkdir(parents=True)
    torch.distributed.barrier()
    with _record_files(engine) as files:
        engine.save_checkpoint(str(incomplete), tag=tag, client_state=_universal_info(), save_latest=False)
    files.save(_random_state(), incomplete / tag / f"random_rank{rank}.pt")
    written: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(written, (files.problem, files.entries))
    problem = next((problem for problem, _ in written if problem), None)
    if problem is None and rank == 0:
        entries = {path: entry for _, each in written for path, entry in each.items()}
        all_facts = {**facts, "optimizer_order": optimizer_order(engine), "state": asdict(state)}
        try:
            _publish(incomplete / tag, folder, all_facts, entries)
            best = state.best_step if settings.keep_best_checkpoint else None
            _point_to_best(run, best)
            steps, last = RunFolder(run).checkpoint_steps(), settings.keep_last_checkpoints
            keep = () if best is None else (best,)
            _remove_old(run, steps_to_remove(steps, last, settings.keep_checkpoint_every_steps, keep))
        except (OSError, UserError) as error:
            problem = str(error)
    outcome = [problem]
    torch.distributed.broadcast_object_list(outcome)
    if outcome[0]:
        raise UserError(f"{folder}: cannot write the checkpoint: {outcome[0]}; free space and rerun")
    size_mib = sum(entry["size_bytes"] for _, each in written for entry in each.values()) / 2**20
    say(f"step {state.step}: checkpoint of {size_mib:.0f} MiB in {time.monotonic() - started:.1f} s")


def newest_valid(run: Path) -> int | None:
    """Step of the newest checkpoint whose files are all as its manifest says; None if there is none at all.

    Broken checkpoints are reported and skipped. Raises UserError if there are some and none is valid.
    """
    return _newest(run, RunFolder(run).checkpoint_steps(), lambda folder: next(problems(folder), None))


def agree_on_newest_valid(run: Path) -> int | None:
    """`newest_valid` as a collective: rank 0 lists the checkpoints, and each rank hashes its share of the files."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    steps = [RunFolder(run).checkpoint_steps() if rank == 0 else None]
    torch.distributed.broadcast_object_list(steps)

    def first_problem(folder: Path) -> str | None:
        found: list[str | None] = [None] * world_size
        torch.distributed.all_gather_object(found, next(problems(folder, share=(rank, world_size)), None))
        return next(filter(None, found), None)

    return _newest(run, steps[0] or [], first_problem)


def problems(folder: Path, *, verify: bool = True, share: tuple[int, int] = (0, 1)) -> Iterator[str]:
    """Yield what is wrong with a checkpoint's files: missing, of another size or, with `verify`, of other bytes.

    `share` (i, n) checks every n-th file, from the i-th on.
    """
    try:
        entries = sorted(read_json(folder / "manifest.json")["files"].items())
        read_json(folder / "run.json")["state"]["step"]
        for name, expected in entries[share[0] :: share[1]]:
            path = folder / name
            if not path.is_file():
                yield f"{name} is missing"
            elif path.stat().st_size != expected["size_bytes"]:
                yield f"{name} has {path.stat().st_size} bytes instead of {expected['size_bytes']}"
            elif verify and sha256_of(path) != expected["sha256"]:
                yield f"{name} has changed"
    except UserError as error:
        yield str(error)
    except (KeyError, TypeError, AttributeError):
        yield "manifest.json or run.json is not one of ours"


def load(engine: TrainingEngine, run: Path, step: int, facts: dict[str, Any], seed: int, stage: int = 0) -> TrainState:
    """Load the checkpoint of `step` into the engine and the random state; returns the run's state.

    With the world size and ZeRO stage of the checkpoint, training continues to the bit; with others, weights and
    optimizer states are resharded, and dropout draws from `seed`. Where `stage` (of `train.stages`) is another than
    the checkpoint's, it begins: the optimizer stays as it is. Raises UserError, before anything is loaded, if any other
    of `facts` differs or a file is not one of ours.
    """
    folder, rank = RunFolder(run).checkpoint(step), torch.distributed.get_rank()
    saved = read_json(folder / "run.json")
    for key, value in facts.items():
        if key not in RESHARDED and saved.get(key) != value:
            raise UserError(
                f"{folder}: saved with {key} = {saved.get(key)}, but this run has {value}; "
                f"resume with {saved.get(key)}, or start a new run from its export (train.init_from)"
            )
    state = TrainState(**saved["state"])
    changes = [f"{key} {saved.get(key)} -> {facts[key]}" for key in RESHARDED if saved.get(key) != facts[key]]
    random_state = None if changes else load_file(folder / f"random_rank{rank}.pt")
    if changes or state.stage != stage:
        restore(engine, folder, saved, weights_alone=state.stage != stage)
    else:
        with _record_files(engine), weights_only(folder), without_patterns(folder.parent) as parent:
            loaded, _ = engine.load_checkpoint(str(parent), tag=folder.name)
        if loaded is None:
            raise UserError(f"{folder}: DeepSpeed finds no checkpoint of ours in it; remove the folder")
    if random_state is None:
        torch.manual_seed(seed)
        say(f"{folder}: resharded ({', '.join(changes)})")
    else:
        _set_random_state(random_state)
    if state.stage != stage:
        state.begin_stage(stage)
    return state


def steps_to_remove(steps: list[int], keep_last: int, keep_every: int = 0, keep: Collection[int] = ()) -> list[int]:
    """Which of these checkpoints to remove: all but the `keep_last` newest, multiples of `keep_every`, and `keep`."""
    old = steps[:-keep_last]
    return [step for step in old if step not in keep and not (keep_every and step % keep_every == 0)]


@contextmanager
def _record_files(engine: TrainingEngine) -> Iterator[RecordingFiles]:
    inner, copy_scripts = engine.checkpoint_engine, engine._copy_recovery_script
    engine.checkpoint_engine = files = RecordingFiles(inner)
    engine._copy_recovery_script = lambda folder: files.record(lambda: copy_scripts(folder))
    try:
        yield files
    finally:
        engine.checkpoint_engine, engine._copy_recovery_script = inner, copy_scripts


def _universal_info() -> dict[str, Any]:
    """What DeepSpeed's ds_to_universal expects in a checkpoint of stages 1 and 2."""
    from deepspeed.checkpoint import constants

    version = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    return {constants.UNIVERSAL_CHECKPOINT_INFO: version}


def _newest(run: Path, steps: list[int], first_problem: Callable[[Path], str | None]) -> int | None:
    for step in reversed(steps):
        folder = RunFolder(run).checkpoint(step)
        problem = first_problem(folder)
        if problem is None:
            _require_known(folder)
            return step
        say(f"WARNING: checkpoint {folder} is broken ({problem}); trying the one before it")
    if steps:
        raise UserError(
            f"{RunFolder(run).checkpoints}: none of its checkpoints is valid; restore one, or move the folder to start "
            "anew"
        )
    return None


def _require_known(folder: Path) -> None:
    """UserError where a later version wrote the checkpoint: whole, but more than this one could continue with."""
    path = folder / "run.json"
    facts = read_json(path)
    unknown = sorted(facts["state"].keys() - {field.name for field in fields(TrainState)})
    if unknown or facts.get("format", FORMAT) > FORMAT:
        what = f"knows {', '.join(unknown)}" if unknown else f"is of format {facts['format']}"
        raise UserError(f"{path}: {what}, which this version does not; use the version of transpooler that wrote it")


def _publish(incomplete: Path, final: Path, facts: dict[str, Any], written: dict[Path, dict[str, Any]]) -> None:
    """Write the manifest, rename the folder, then move `latest`: on rank 0, once all have `written` their files."""
    write_json(incomplete / "run.json", {"format": FORMAT, "saved_at": time.time(), **facts})
    files = sorted(path for path in incomplete.rglob("*") if path.is_file())
    entries = {str(path.relative_to(incomplete)): written.get(path) or sync_and_hash(path) for path in files}
    write_json(incomplete / "manifest.json", {"format": FORMAT, "files": entries})
    shutil.rmtree(final, ignore_errors=True)  # a broken one of the same step
    os.replace(incomplete, final)
    fsync_folder(final.parent)
    shutil.rmtree(incomplete.parent, ignore_errors=True)
    with atomic_write(RunFolder(final.parents[1]).latest) as file:
        file.write(final.name)


def _point_to_best(run: Path, best: int | None) -> None:
    """Write the name of the best checkpoint into `best`."""
    if best in RunFolder(run).checkpoint_steps():
        with atomic_write(RunFolder(run).best) as file:
            file.write(RunFolder(run).checkpoint(best).name)


def _remove_old(run: Path, steps: list[int]) -> None:
    doomed = RunFolder(run).checkpoints / f"{INCOMPLETE}.old"
    shutil.rmtree(doomed, ignore_errors=True)
    for step in steps:
        # Renamed first, so that a kill cannot leave half a checkpoint under a good name.
        os.replace(RunFolder(run).checkpoint(step), doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _random_state() -> dict[str, Any]:
    """States of the global generators; in training only dropout draws from them."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0, dtype=torch.uint8)
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]):
        torch.cuda.set_rng_state(states["cuda"])

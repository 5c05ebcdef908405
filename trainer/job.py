"""From a configuration to a run that is ready to take its next step: checks first, then folders, then the engine."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transpooler.common.errors import UserError
from transpooler.common.log import say, set_quiet
from transpooler.data_pipeline.loading.loader import Loader
from transpooler.trainer.checkpoint import checkpoint
from transpooler.trainer.config import Config, load_config, save_config
from transpooler.trainer.engine.agreement import together
from transpooler.trainer.engine.engine import (
    check_fragment,
    check_machine,
    create_engine,
    init_distributed,
    sharded_init,
)
from transpooler.trainer.guards.stop import Stop
from transpooler.trainer.guards.watchdog import Watchdog
from transpooler.trainer.metrics import MetricsWriter, check_wandb
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.state import TrainState
from transpooler.trainer.weights.models import build_model
from transpooler.trainer.weights.warm_start import start_from

RANK_SEED_STRIDE = 1_000_003
FREE_TO_CHANGE = (
    *("model.dropout", "model.init_std"),
    *("data.shards", "data.prefetch_steps", "data.workers", "data.cache", "data.cache_gib", "data.fetch_ahead_steps"),
    *("data.fetch_retries", "data.max_damaged_documents"),
)
"""Keys of the fixed sections that a resumed run may change: they do not decide what it is."""


@dataclass
class Job:
    """One rank's part of a run."""

    config: Config
    run: Path
    rank: int
    world_size: int
    loader: Loader
    validation: Loader | None
    engine: Any
    state: TrainState
    facts: dict[str, Any]
    metrics: MetricsWriter | None
    """On rank 0 alone."""
    stop: Stop
    saved_step: int | None = None
    """The step of the newest checkpoint, loaded or written by this process."""
    watchdog: Watchdog | None = None

    @property
    def vocab_size(self) -> int:
        return int(self.engine.module.config.vocab_size)

    def save(self) -> None:
        """Write a checkpoint of this step, unless it was loaded or written already."""
        if self.saved_step == self.state.step:
            return
        settings = self.config.train
        best = self.state.best_step if settings.keep_best_checkpoint else None
        self.mark("checkpoint")
        checkpoint.save(
            self.engine,
            self.state,
            self.run,
            self.facts,
            settings.keep_last_checkpoints,
            settings.keep_checkpoint_every_steps,
            best,
        )
        self.saved_step = self.state.step

    def mark(self, phase: str) -> None:
        """Tell the watchdog that something ended and `phase` begins."""
        if self.watchdog is not None:
            self.watchdog.mark(self.state.step, phase, self.state.ledger)

    def check_stop(self, phase: str) -> None:
        """`mark`, and raise Stopped on all ranks if any is asked to stop. A collective: for evaluation, generation."""
        self.mark(phase)
        self.stop.check(self.engine.device)


def prepare_job(config: Config, stop: Stop | None = None) -> Job:
    """Check everything that can be checked, join the other ranks, build or resume."""
    check_machine(config.engine)
    check_wandb(config.train.wandb_project)
    run = Path(config.run)
    check_run_folder(config, run)
    rank, world_size = init_distributed(config)
    if rank:
        set_quiet(True)
    loader, validation = together(lambda: _loaders(config, rank, world_size))
    check_fragment(config, loader.num_micro_batches, world_size)
    step = checkpoint.agreed_newest_valid(run)
    sharded = sharded_init(config, loader.num_micro_batches, world_size)
    model = build_model(config, loader.tokenizer, sharded)
    if config.train.init_from is not None and step is None:
        start_from(model, Path(config.train.init_from), config, loader.tokenizer_fingerprint)
    engine = create_engine(model, config, loader.num_micro_batches, world_size)
    facts = {
        "world_size": world_size,
        "zero_stage": config.engine.zero_stage,
        "precision": config.engine.precision,
        "tokenizer_fingerprint": loader.tokenizer_fingerprint,
    }
    if step is None:
        torch.manual_seed(_rank_seed(config, rank, 0))
        state = TrainState()
    else:
        state = checkpoint.load(engine, run, step, facts, seed=_rank_seed(config, rank, step))
        say(f"{run}: resumed at step {step}")
    torch.distributed.barrier()  # nobody reads config.yaml any more
    metrics = None
    if rank == 0:
        save_config(config, RunFolder(run).config)
        metrics = MetricsWriter(
            run,
            step=state.step,
            tensorboard=config.train.tensorboard,
            wandb_project=config.train.wandb_project,
            settings=dataclasses.asdict(config),
        )
    return Job(config, run, rank, world_size, loader, validation, engine, state, facts, metrics, stop or Stop(), step)


def check_run_folder(config: Config, run: Path) -> None:
    """UserError where the folder holds a run that this configuration must not continue."""
    if not RunFolder(run).checkpoint_steps():
        return
    if not config.train.resume:
        raise UserError(f"{run}: holds a run already, and train.resume is false; choose another folder (run=...)")
    before = load_config([RunFolder(run).config])
    changed = [key for key, old, new in _fixed_differences(before, config) if old != new]
    if changed:
        raise UserError(
            f"{run}: holds a run with other values of {', '.join(changed)}; choose another folder (run=...) "
            f"or the values in {RunFolder(run).config}"
        )


def _fixed_differences(before: Config, after: Config) -> list[tuple[str, Any, Any]]:
    pairs = [
        ("seed", before.seed, after.seed),
        ("train.init_from", before.train.init_from, after.train.init_from),
        ("optimizer.name", before.optimizer.name, after.optimizer.name),
    ]
    for section in ("model", "data"):
        old, new = getattr(before, section), getattr(after, section)
        for entry in dataclasses.fields(old):
            pairs.append((f"{section}.{entry.name}", getattr(old, entry.name), getattr(new, entry.name)))
    return [pair for pair in pairs if pair[0] not in FREE_TO_CHANGE]


def _rank_seed(config: Config, rank: int, step: int) -> int:
    """Seed of dropout, which differs between ranks; `step` where a run goes on with other ranks than it had."""
    return (config.seed * RANK_SEED_STRIDE + rank + (step << 32)) % 2**63


def _loaders(config: Config, rank: int, world_size: int) -> tuple[Loader, Loader | None]:
    evaluates = config.train.evaluate_every_steps and config.data.validation_split
    validation = _loader(config, str(config.data.validation_split), rank, world_size) if evaluates else None
    return _loader(config, config.data.train_split, rank, world_size), validation


def _loader(config: Config, split: str, rank: int, world_size: int) -> Loader:
    return Loader(
        config.data,
        split=split,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        micro_batch_size=config.engine.micro_batch_size,
    )

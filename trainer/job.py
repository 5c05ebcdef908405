"""From a configuration to a run that is ready to take its next step: checks first, then folders, then the engine."""

import dataclasses
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from transpooler.common import UserError, say, set_quiet
from transpooler.data_pipeline.loading.loader import Loader
from transpooler.model.layers.context_parallel import ContextGroup, sharing
from transpooler.model.layers.streaming import cutting
from transpooler.trainer.checkpoint import checkpoint
from transpooler.trainer.config import Config, save_config
from transpooler.trainer.config.differences import resume_conflicts
from transpooler.trainer.config.load import load_saved_config, other_version
from transpooler.trainer.config.stages import stage_of
from transpooler.trainer.engine.distributed import init_distributed, join_context_group
from transpooler.trainer.engine.engine import check_fragment, check_machine, create_engine, destroy_engine, sharded_init
from transpooler.trainer.engine.parameters import check_patterns, freeze
from transpooler.trainer.engine.protocol import TrainingEngine
from transpooler.trainer.engine.ranks import run_on_all_ranks
from transpooler.trainer.engine.settings import deepspeed_config
from transpooler.trainer.estimate.products import Trained, trained_of
from transpooler.trainer.guards.stop import Stop
from transpooler.trainer.guards.watchdog import Watchdog
from transpooler.trainer.metrics import MetricsWriter, check_wandb
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.state import TrainState
from transpooler.trainer.weights.lora import add_lora, check_lora
from transpooler.trainer.weights.models import build_model
from transpooler.trainer.weights.warm_start import start_from

RANK_SEED_STRIDE = 1_000_003


@dataclass
class Job:
    """One rank's part of a run."""

    config: Config
    run: Path
    rank: int
    world_size: int
    context: ContextGroup | None
    """The ranks that share this one's documents, if any do."""
    loader: Loader
    validation: Loader | None
    engine: TrainingEngine
    trained: Trained
    """What the engine trains, for the count of its work."""
    state: TrainState
    settings: dict[str, Any]
    """DeepSpeed's configuration."""
    facts: dict[str, Any]
    """What a resumed run must agree with, or be resharded for; see `checkpoint.save`."""
    metrics: MetricsWriter | None
    """On rank 0 alone."""
    stop: Stop
    saved_step: int | None = None
    """The step of the newest checkpoint, loaded or written by this process."""
    watchdog: Watchdog | None = None

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the model computes as `engine` says, on batches of the job's loaders."""
        with sharing(self.context), cutting(self.config.engine.cuts(self.world_size)):
            yield

    @property
    def context_bytes_sent(self) -> float:
        """What this rank has sent so far to those that share its documents, in rings."""
        return 0.0 if self.context is None else self.context.bytes_sent

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.saved_step == self.state.step:
            return
        self.mark("checkpoint")
        checkpoint.save(self.engine, self.state, self.run, self.facts, self.config.train)
        self.saved_step = self.state.step

    def enter_due_stage(self) -> None:
        """Where a stage has ended, save, and go on as a run does that resumes here: with an engine for the next one."""
        if stage_of(self.config.stages, self.state.step).number == self.state.stage:
            return
        self.save()
        self.mark("stage")
        destroy_engine(self.engine)
        del self.engine
        gc.collect()  # engines are full of cycles, and two models may not fit
        self.engine, state = open_engine(self.config, self.loader, self.settings, self.facts, self.state.step)
        self.trained = trained_of(self.engine.module)
        self.state.begin_stage(state.stage)

    def mark(self, phase: str) -> None:
        """Tell the watchdog that something ended and `phase` begins."""
        if self.watchdog is not None:
            self.watchdog.mark(self.state.step, phase, self.state.ledger)

    def check_stop(self, phase: str) -> None:
        """`mark` the phase, then raise Stopped on all ranks if any is asked to stop. A collective."""
        self.mark(phase)
        self.stop.check(self.engine.device)


def prepare_job(config: Config, stop: Stop | None = None) -> Job:
    """Check all that can be checked beforehand, join the other ranks, build the engine, resume where there is a run.

    Raises UserError before anything is written into the run folder.
    """
    check_machine(config.engine)
    check_wandb(config.train.wandb_project)
    check_lora(config.train.lora)
    run = RunFolder(config.run).root
    check_run_folder(config, run)
    rank, world_size = init_distributed(config.engine)
    if rank:
        set_quiet(True)
    context = join_context_group(config.engine, rank, world_size)
    loader, validation = run_on_all_ranks(lambda: _open_loaders(config, rank, world_size, context))
    settings = deepspeed_config(config.engine, config.optimizer, loader.num_micro_batches, world_size)
    check_fragment(settings)
    step = checkpoint.agree_on_newest_valid(run)
    facts = {
        "world_size": world_size,
        "zero_stage": config.engine.zero_stage,
        "precision": config.engine.precision,
        "tokenizer_fingerprint": loader.tokenizer_fingerprint,
    }
    engine, state = open_engine(config, loader, settings, facts, step)
    if step is not None:
        say(f"{run}: resumed at step {step}")
    torch.distributed.barrier()  # every rank has read config.yaml, which rank 0 now writes
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
    return Job(
        config=config,
        run=run,
        rank=rank,
        world_size=world_size,
        context=context,
        loader=loader,
        validation=validation,
        engine=engine,
        trained=trained_of(engine.module),
        state=state,
        settings=settings,
        facts=facts,
        metrics=metrics,
        stop=stop or Stop(),
        saved_step=step,
    )


def open_engine(
    config: Config, loader: Loader, settings: dict[str, Any], facts: dict[str, Any], step: int | None
) -> tuple[TrainingEngine, TrainState]:
    """The engine, ready for the step that follows the checkpoint of `step` (None: for the first), and the state.

    Within a stage everything continues to the bit. The first step of a stage has weights and random state from the
    checkpoint, and a fresh optimizer. A collective.
    """
    rank, stage = torch.distributed.get_rank(), stage_of(config.stages, step or 0)
    model = build_model(config, loader.tokenizer, sharded_init(config.engine, settings))
    if config.train.init_from is not None and step is None:
        start_from(model, config.train.init_from, config, loader.tokenizer)
    if config.train.lora is not None:
        add_lora(model, config.train.lora, config.seed)
    check_patterns(model, config.stages, config.name_patterns)
    freeze(model, stage)
    engine = create_engine(model, config.engine, stage.optimizer, settings)
    if step is None:
        torch.manual_seed(_rank_seed(config.seed, rank, 0))
        state = TrainState()
    else:
        seed = _rank_seed(config.seed, rank, step)
        state = checkpoint.load(engine, RunFolder(config.run).root, step, facts, seed=seed, stage=stage.number)
    if len(config.stages) > 1:
        say(f"step {state.step}: {stage.key}, to step {stage.last}")
    return engine, state


def check_run_folder(config: Config, run: Path) -> None:
    """UserError where the folder holds a run that this configuration must not continue."""
    if not RunFolder(run).checkpoint_steps():
        return
    if not config.train.resume:
        raise UserError(f"{run}: holds a run already, and train.resume is false; choose another folder (run=...)")
    before, unknown_keys = load_saved_config(RunFolder(run).config)
    if decisive := [key for key in unknown_keys if key.startswith(("model.", "data."))]:
        raise UserError(other_version(RunFolder(run).config, decisive))
    if changed := resume_conflicts(before, config):
        raise UserError(
            f"{run}: holds a run with other values of {', '.join(changed)}; choose another folder (run=...) "
            f"or the values in {RunFolder(run).config}"
        )


def _rank_seed(seed: int, rank: int, step: int) -> int:
    """Seed of dropout, which differs between ranks; `step` where a run continues with other ranks than it had."""
    return (seed * RANK_SEED_STRIDE + rank + (step << 32)) % 2**63


def _open_loaders(
    config: Config, rank: int, world_size: int, context: ContextGroup | None = None
) -> tuple[Loader, Loader | None]:
    data, engine = config.data, config.engine
    part = None if context is None else context.part(cast(int, config.model.block_size))

    def open_split(split: str) -> Loader:
        return Loader(
            data,
            split=split,
            seed=config.seed,
            rank=rank // engine.context_parallel_size,
            world_size=engine.data_parallel_size(world_size),
            micro_batch_size=engine.micro_batch_size,
            part=part,
        )

    evaluates = config.train.evaluate_every_steps and data.validation_split
    validation = open_split(str(data.validation_split)) if evaluates else None
    training = open_split(data.train_split)
    whole = data.batch_tokens is None and not data.mixture
    if whole and (documents := len(training.dataset)) < data.batch_size:
        say(f"WARNING: data.batch_size is {data.batch_size}, but a step takes {documents}: there are no more documents")
    return training, validation

"""One optimizer step, and the held-out loss: exact means over all target tokens of all ranks."""

from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from transpooler.common import UserError
from transpooler.data_pipeline.loading.loader import IGNORED_LABEL, Step
from transpooler.model.ops.schedule import PoolingStage, schedules
from transpooler.trainer.config import Config
from transpooler.trainer.config.stages import stage_of
from transpooler.trainer.engine.engine import gradient_norm
from transpooler.trainer.engine.optimizer import learning_rate, set_learning_rate
from transpooler.trainer.engine.ranks import raise_on_all_ranks, sum_over_ranks
from transpooler.trainer.estimate.flops import batch_flops
from transpooler.trainer.guards.loss_spikes import is_spike
from transpooler.trainer.job import Job


@dataclass(frozen=True)
class BatchCounts:
    """What a global batch holds, over all ranks; before `sum_over_ranks`, what one rank's part of it holds."""

    target_tokens: int
    source_tokens: int
    padded_tokens: int
    """Source tokens computed, padding included."""
    flops: float
    """Floating-point operations of the model on real tokens, forward and backward."""
    damaged_documents: int
    """Left out, because they could not be read."""
    stops: int
    """Ranks that were asked to stop."""
    failures: int
    """Ranks that could not read their documents."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, over all ranks."""

    counts: BatchCounts
    loss_sum: float
    """Summed cross entropy of all target tokens."""
    gradient_norm: float
    """Before clipping."""
    skipped: bool
    """No update, because a gradient was not finite or the loss a spike to be skipped."""
    spike: bool
    """The loss was far above its moving mean."""
    context_bytes: float = 0.0
    """What this rank sent to those that share its documents."""

    @property
    def loss(self) -> float:
        """Mean cross entropy per target token."""
        return self.loss_sum / max(1, self.counts.target_tokens)


def train_step(job: Job, step: Step, stop: bool) -> StepResult | None:
    """Train on one global batch; if any rank was asked to stop, do nothing on any rank and return None.

    Raises UserError on all ranks where one of them could not read its documents.
    """
    engine, device, settings = job.engine, job.engine.device, job.config.guards
    step = _check_agreement(job, step)
    sent = job.context_bytes_sent
    schedule = schedule_of_step(job.config, job.state.step)
    counts = _count_over_ranks(job, step, schedule, stop)
    if counts.stops:
        return None
    if counts.failures:
        raise_on_all_ranks(step.error)
    set_learning_rate(engine.optimizer.param_groups, rate_of_step(job.config, job.state.step))
    engine.module.follow(schedule)
    engine.module.explore(exploration_of_step(job.config, job.state.step))
    loss_share = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(step.micro_batches, 1):
        with job.computing():
            loss = engine(**_move(batch, device), num_items_in_batch=max(1, counts.target_tokens)).loss
        loss_share += loss.detach()
        if number == len(step.micro_batches):
            torch.distributed.all_reduce(loss_share)
            if settings.skip_spikes and is_spike(job.state, float(loss_share), settings.spike_threshold):
                loss = loss * float("nan")  # on every rank; a loss that is not finite makes no update at any ZeRO stage
        # DeepSpeed averages gradients over ranks; the loss is a share of the global mean, so they must be summed.
        engine.backward(loss * job.world_size, scale_wrt_gas=False)
        engine.step()
    engine.module.keep()  # whatever evaluates has the largest budget
    return StepResult(
        counts=counts,
        loss_sum=float(loss_share) * counts.target_tokens,
        gradient_norm=gradient_norm(engine),
        skipped=not engine.was_step_applied(),
        spike=is_spike(job.state, float(loss_share), settings.spike_threshold),
        context_bytes=job.context_bytes_sent - sent,
    )


def _check_agreement(job: Job, step: Step) -> Step:
    """The step, with an error if ranks that share documents could read different ones; a collective among them."""
    if job.context is None or job.context.agree(len(step.damage), job.engine.device):
        return step
    problem = f"ranks that share documents cannot read the same ones of this step (here {len(step.damage)} are damaged)"
    return replace(step, error=UserError(f"{problem}; give all hosts the same whole shards"))


def rate_of_step(config: Config, step: int) -> float:
    """Learning rate of the 0-based step: each stage has a schedule of its own."""
    stage = stage_of(config.stages, step)
    return learning_rate(step - stage.first, stage.optimizer, stage.steps)


def schedule_of_step(config: Config, step: int) -> tuple[PoolingStage, ...]:
    """The pooling schedule of the 0-based step: one of its budgets, drawn from seed and step alone.

    So all ranks keep the same number of tokens, and a resumed run keeps what it would have kept.
    """
    budgets = schedules(config.model.pooling)
    return budgets[int(np.random.default_rng((config.seed, step)).integers(len(budgets)))]


def exploration_of_step(config: Config, step: int) -> int:
    """What the poolers' noise of the 0-based step is drawn from, on all ranks alike, together with each document."""
    return int(np.random.default_rng((config.seed, step, 1)).integers(2**62))


@torch.no_grad()
def held_out_loss(job: Job) -> tuple[float, int]:
    """Mean loss per target token over the validation documents, and the number of these tokens.

    Raises Stopped on all ranks if any of them is asked to stop meanwhile, and UserError on all ranks if any of them
    could not read its documents.
    """
    assert job.validation is not None
    device, engine = job.engine.device, job.engine
    engine.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    error = None
    for step in job.validation.evaluation_steps(job.config.train.max_validation_documents):
        job.check_stop("evaluation")
        if job.context is not None:
            raise_on_all_ranks(_check_agreement(job, step).error)
        error = error or step.error
        for batch in step.micro_batches:
            with job.computing():
                totals[0] += engine(**_move(batch, device), num_items_in_batch=1).loss
            totals[1] += (batch["labels"] != IGNORED_LABEL).sum()
    engine.train()
    totals[2] = error is not None
    torch.distributed.all_reduce(totals)
    loss_sum, num_tokens, failures = totals.tolist()
    if failures:
        raise_on_all_ranks(error)
    return loss_sum / max(1.0, num_tokens), int(num_tokens)


def _count_over_ranks(job: Job, step: Step, schedule: tuple[PoolingStage, ...], stop: bool) -> BatchCounts:
    vocab_size = job.engine.module.config.vocab_size
    model = replace(job.config.model, pooling=schedule)
    own = BatchCounts(
        target_tokens=sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in step.micro_batches),
        source_tokens=step.num_source_tokens,
        padded_tokens=sum(batch["input_ids"].numel() for batch in step.micro_batches),
        flops=batch_flops(model, vocab_size, step.lengths, job.trained),
        damaged_documents=0 if job.context is not None and job.context.rank else len(step.damage),
        stops=int(stop),
        failures=int(step.error is not None),
    )
    return BatchCounts(*map(int, sum_over_ranks(astuple(own), job.engine.device)))


def _move(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

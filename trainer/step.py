"""One optimizer step, and the held-out loss: exact means over all target tokens of all ranks."""

from dataclasses import dataclass

import torch

from transpooler.data_pipeline.loading.loader import IGNORED_LABEL, Step
from transpooler.trainer.engine.agreement import raise_together
from transpooler.trainer.engine.engine import gradient_norm, reduced
from transpooler.trainer.engine.optimizer import learning_rate, set_learning_rate
from transpooler.trainer.estimate.flops import batch_flops
from transpooler.trainer.guards.loss_spikes import is_spike
from transpooler.trainer.job import Job


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, over all ranks."""

    loss_sum: float
    """Summed cross entropy of all target tokens."""
    target_tokens: int
    source_tokens: int
    padded_tokens: int
    """Source tokens computed, padding included."""
    damaged_documents: int
    """Left out, because they could not be read."""
    gradient_norm: float
    """Before clipping."""
    flops: float
    """Floating-point operations of the model on real tokens, forward and backward, over all ranks."""
    skipped: bool
    """No update, because a gradient was not finite or the loss a spike to be skipped."""
    spike: bool
    """The loss was far above its moving mean."""


def train_step(job: Job, step: Step, stop: bool) -> StepResult | None:
    """Forward, backward, update on one global batch; None, and nothing done, if any rank was asked to stop."""
    engine, device, settings = job.engine, job.engine.device, job.config.guards
    counts = [
        sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in step.micro_batches),
        step.num_source_tokens,
        sum(batch["input_ids"].numel() for batch in step.micro_batches),
        sum(batch_flops(job.config.model, job.vocab_size, batch) for batch in step.micro_batches),
        int(stop),
        int(step.error is not None),
        len(step.damage),
    ]
    targets, sources, padded, flops, stops, failures, damaged = (int(count) for count in reduced(counts, device))
    if stops:
        return None
    if failures:
        raise_together(step.error)
    rate = learning_rate(job.state.step, job.config.optimizer, job.config.train.steps)
    set_learning_rate(engine.optimizer.param_groups, rate)
    loss_share = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(step.micro_batches, 1):
        loss = engine(**_to(batch, device), num_items_in_batch=max(1, targets)).loss
        loss_share += loss.detach()
        if number == len(step.micro_batches):
            torch.distributed.all_reduce(loss_share)
            if settings.skip_spikes and is_spike(job.state, float(loss_share), settings.spike_threshold):
                loss = loss * float("nan")  # every rank does so; what is not finite makes no update at any stage
        # DeepSpeed averages gradients over ranks; the loss is a share of the global mean, so they must be summed.
        engine.backward(loss * job.world_size, scale_wrt_gas=False)
        engine.step()
    return StepResult(
        loss_sum=float(loss_share) * targets,
        target_tokens=targets,
        source_tokens=sources,
        padded_tokens=padded,
        damaged_documents=damaged,
        flops=flops,
        gradient_norm=gradient_norm(engine),
        skipped=not engine.was_step_applied(),
        spike=is_spike(job.state, float(loss_share), settings.spike_threshold),
    )


@torch.no_grad()
def held_out_loss(job: Job) -> tuple[float, int]:
    """Mean loss per target token over the validation documents, and the number of these tokens.

    Raises Stopped, on all ranks together, when any rank is asked to stop meanwhile.
    """
    assert job.validation is not None
    device, engine = job.engine.device, job.engine
    engine.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    error = None
    for step in job.validation.evaluation_steps(job.config.train.max_validation_documents):
        job.check_stop("evaluation")
        error = error or step.error
        for batch in step.micro_batches:
            totals[0] += engine(**_to(batch, device), num_items_in_batch=1).loss
            totals[1] += (batch["labels"] != IGNORED_LABEL).sum()
    engine.train()
    totals[2] = error is not None
    torch.distributed.all_reduce(totals)
    loss_sum, num_tokens, failures = totals.tolist()
    if failures:
        raise_together(error)
    return loss_sum / max(1.0, num_tokens), int(num_tokens)


def _to(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

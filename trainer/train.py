"""The training loop: one for pretraining and fine-tuning, run by each rank."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch

from transpooler.common import PREEMPTED, UserError, exit_on_stop_signals, peak_resident_mib, progress, say
from transpooler.data_pipeline.loading.loader import Step
from transpooler.trainer.config import Config
from transpooler.trainer.engine.engine import loss_scale
from transpooler.trainer.engine.ranks import run_on_all_ranks
from transpooler.trainer.estimate.flops import peak_tflops
from transpooler.trainer.guards.loss_spikes import note_loss
from transpooler.trainer.guards.run_lock import hold
from transpooler.trainer.guards.stop import Stop, Stopped
from transpooler.trainer.guards.watchdog import is_lost_connection, watchdog
from transpooler.trainer.job import Job, prepare_job
from transpooler.trainer.profiler import profiling
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.step import StepResult, rate_of_step, train_step
from transpooler.trainer.validation import evaluate_in_loop, is_complete
from transpooler.trainer.weights.export import export_run
from transpooler.trainer.weights.whole_folder import check_free

MAX_SKIPPED_IN_A_ROW = 20


def train(config: Config) -> None:
    """Train from the newest checkpoint, or from the start, to `train.steps`; then export to RUN/export.

    RANK, WORLD_SIZE and LOCAL_RANK come from the environment; without them this process trains alone. On SIGTERM,
    SIGUSR1 or after `train.max_time` all ranks finish the step together, save a checkpoint and exit with code 75.
    """
    with hold(RunFolder(config.run).lock, "choose run=..."):
        _train(config, Stop(config.train.max_time))


def _train(config: Config, stop: Stop) -> None:
    with exit_on_stop_signals():  # until there is something to save
        job = prepare_job(config, stop)
    with stop.listening():
        if is_complete(job) and RunFolder(job.run).export_config.is_file():
            say(f"{job.run}: trained already, {job.state.step} steps")
        elif _may_export(job) and _loop_under_watchdog(job):
            _finish(job)
        else:
            job.save()
            reason = stop.common_reason()
            say(f"{job.run}: {reason}: saved step {job.state.step}; run the same command again to continue")
        if job.metrics is not None:
            job.metrics.close()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        if not is_complete(job):
            raise SystemExit(PREEMPTED)


def _may_export(job: Job) -> bool:
    """True; UserError on all ranks where RUN/export may not be written: before any step, not after the last."""
    run_on_all_ranks(lambda: None if job.rank else check_free(RunFolder(job.run).export))
    return True


def _loop_under_watchdog(job: Job) -> bool:
    """Run `_loop`; if a collective fails because another rank is gone, end this process with one line that says so."""
    with watchdog(job.run, job.config.guards) as job.watchdog:
        try:
            return _loop(job)
        except RuntimeError as error:
            if job.watchdog is None or not is_lost_connection(error):
                raise
            job.watchdog.report_lost_connection(error)
            raise
        except Stopped:
            return False


def _loop(job: Job) -> bool:
    """Take steps until the run is complete (True), or until a rank is asked to stop (False, or Stopped)."""
    state, settings = job.state, job.config.train
    peak = peak_tflops(job.config.engine.precision, job.config.engine.peak_tflops)
    clock = _Clock(peak and peak * job.world_size)
    with (
        closing(job.loader.steps(state.step)) as steps,
        progress(f"train {job.run.name}", settings.steps - state.step) as bar,
        profiling(job.run, settings, job.rank, state.step) as step_is_done,
    ):
        while True:
            if state.evaluation_pending and evaluate_in_loop(job):
                job.save()
            if state.step and _is_due(state.step, settings.checkpoint_every_steps, settings.steps):
                job.save()
            if is_complete(job):
                return True
            job.enter_due_stage()
            job.mark("data")
            job.loader.damaged_documents = (
                state.damaged_documents
            )  # the limit covers all ranks and all starts of the run
            step = clock.take_step(steps)
            job.mark("step")
            result = train_step(job, step, job.stop.wanted())
            if result is None:
                return False
            _record(job, step, result)
            clock.count(result)
            step_is_done()
            bar.advance(note=f"loss {result.loss:.3f}")
            if _is_due(state.step, settings.log_every_steps, settings.steps):
                _log(job, step, result, clock)


def _is_due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _record(job: Job, step: Step, result: StepResult) -> None:
    """Update the state; stop a run whose gradients are not finite step after step."""
    state = job.state
    state.step += 1
    state.source_tokens += result.counts.source_tokens
    state.target_tokens += result.counts.target_tokens
    state.damaged_documents += result.counts.damaged_documents
    state.record(step.keys)
    every, last = job.config.train.evaluate_every_steps, job.config.train.steps
    state.evaluation_pending = job.validation is not None and _is_due(state.step, every, last)
    loss = result.loss
    if result.spike:
        state.loss_spikes += 1
        what = "a spike, no update" if result.skipped else "a spike"
        keys = ", ".join(step.keys)
        say(f"step {state.step}: loss {loss:.3f} is {what} (mean {state.loss_mean:.3f}; documents {keys})")
    if not result.skipped:
        note_loss(state, loss)
        state.skipped_in_a_row = 0
        state.window_loss += result.loss_sum
        state.window_target_tokens += result.counts.target_tokens
        return
    state.skipped_steps += 1
    state.skipped_in_a_row += 1
    if not result.spike:
        say(f"step {state.step}: loss or gradient not finite, no update (documents {', '.join(step.keys)})")
    if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"{job.run}: {MAX_SKIPPED_IN_A_ROW} steps in a row were not finite or spikes, the last on documents "
            f"{', '.join(step.keys)}; lower optimizer.learning_rate or look at these documents"
        )


def _log(job: Job, step: Step, result: StepResult, clock: "_Clock") -> None:
    """Write one line of metrics; its loss is the mean since the line before."""
    state = job.state
    loss = state.window_loss / max(1, state.window_target_tokens)
    state.window_loss, state.window_target_tokens = 0.0, 0
    if job.metrics is None:
        return
    row: dict[str, Any] = {
        "step": state.step,
        "split": "train",
        "loss": loss,
        "learning_rate": rate_of_step(job.config, state.step - 1),
        "grad_norm": result.gradient_norm,
        **loss_scale(job.engine),
        **({} if job.context is None else {"context_mib": result.context_bytes / 2**20}),
        **clock.window(),
        "epoch": step.epoch,
        "skipped_steps": state.skipped_steps,
        "damaged_documents": state.damaged_documents,
        "loss_spikes": state.loss_spikes,
        "source_tokens": state.source_tokens,
        "target_tokens": state.target_tokens,
        "peak_memory_mib": _peak_memory_mib(),
        "ledger": state.ledger,
        **job.engine.module.pooling_statistics(),
    }
    job.metrics.write(row)


def _finish(job: Job) -> None:
    """Save and export the complete run; the other ranks wait for rank 0 at the barrier that follows."""
    job.save()
    if job.rank == 0:
        step = job.state.best_step if job.config.train.export_best else None
        export_run(job.run, RunFolder(job.run).export, step)
        what = f"model of step {step or job.state.step}"
        say(f"{job.run}: done, {job.state.step} steps; {what} in {RunFolder(job.run).export}")


def _peak_memory_mib() -> float:
    """Peak memory of this rank: on the device with CUDA, else the resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_mib()


class _Clock:
    """Counts time, tokens and operations since the last line of metrics."""

    def __init__(self, peak_tflops: float | None) -> None:
        """`peak_tflops`: of the devices of all ranks together; None leaves mfu out."""
        self._peak_tflops = peak_tflops
        self._reset()

    def _reset(self) -> None:
        self._started, self._waited_s = time.perf_counter(), 0.0
        self._steps = self._source_tokens = self._padded_tokens = 0
        self._flops = 0.0

    def take_step(self, steps: Iterator[Step]) -> Step:
        """Take the next step from the loader and count the time that it takes."""
        started = time.perf_counter()
        step = next(steps)
        self._waited_s += time.perf_counter() - started
        return step

    def count(self, result: StepResult) -> None:
        """Add one step."""
        self._steps += 1
        self._source_tokens += result.counts.source_tokens
        self._padded_tokens += result.counts.padded_tokens
        self._flops += result.counts.flops

    def window(self) -> dict[str, float]:
        """Rates since the last call, evaluations and checkpoints in between included. Starts a new window."""
        elapsed_s = time.perf_counter() - self._started
        values = {
            "step_time_s": elapsed_s / max(1, self._steps),
            "source_tokens_per_s": self._source_tokens / elapsed_s,
            "data_wait_share": self._waited_s / elapsed_s,
            "padding_share": 1 - self._source_tokens / max(1, self._padded_tokens),
            "model_tflops_per_s": self._flops / elapsed_s / 1e12,
        }
        if self._peak_tflops is not None:
            values["mfu"] = values["model_tflops_per_s"] / self._peak_tflops
        self._reset()
        return values

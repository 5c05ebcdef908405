"""The `train:` section: the loop."""

from collections.abc import Iterator
from dataclasses import dataclass

from transpooler.common.durations import duration_s
from transpooler.common.fields import at_least, one_of

BEST_METRICS = ("loss", "rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    steps: int = at_least(1, 300_000)
    """Optimizer steps of the whole run."""
    init_from: str | None = None
    """Folder of a model whose weights start the run: an export of ours, also with another pooling schedule, or a BART
    of `transformers`. What does not match is reported. null starts from random weights."""
    resume: bool = True
    """Continue from the run folder's newest valid checkpoint, if it has one; false refuses to touch such a run."""
    checkpoint_every_steps: int = at_least(1, 1000)
    """Save a checkpoint every so many steps, and at the end."""
    keep_last_checkpoints: int = at_least(1, 2)
    """Older checkpoints are removed."""
    keep_checkpoint_every_steps: int = at_least(0, 0)
    """Checkpoints of multiples of this step stay for good; 0 keeps none of them."""
    max_time: str | float | None = None
    """Wall-clock limit of one start: seconds, or such as '90m' or '1d12h'. Then save and exit with 75; null = none."""
    evaluate_every_steps: int = at_least(0, 1000)
    """Held-out loss every so many steps, and at the end; 0 turns it off."""
    max_validation_documents: int = at_least(0, 512)
    """Held-out loss is taken over the first so many documents of the validation split."""
    generate_documents: int = at_least(0, 0)
    """Summaries of the first so many validation documents are generated (as `generation` says) and scored by ROUGE with
    each evaluation; 0 turns it off."""
    best_metric: str = one_of(BEST_METRICS, "loss")
    """What makes a checkpoint the best: loss, or rouge1, rouge2, rougeL, rougeLsum of the generated summaries."""
    keep_best_checkpoint: bool = False
    """Save a checkpoint at each evaluation that is better than all before and keep it (checkpoints/best names it)."""
    export_best: bool = False
    """Export the best checkpoint at the end, not the last."""
    patience: int = at_least(0, 0)
    """Stop after so many evaluations in a row without a better best_metric; 0 trains to the end."""
    log_every_steps: int = at_least(1, 10)
    """One line of metrics every so many steps."""
    tensorboard: bool = True
    wandb_project: str | None = None
    """Log to this project of Weights & Biases, too (extra `wandb`; WANDB_MODE=offline works without network)."""
    profile_start_step: int = at_least(0, 10)
    """First step (0-based, of this start of the run) in the profiler's window."""
    profile_steps: int = at_least(0, 0)
    """Steps that rank 0 records with torch.profiler, as RUN/profile/step<N>.json (a Chrome trace); 0 = off."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        if self.max_time is not None and not (duration_s(self.max_time) or 0) > 0:
            yield "max_time", f"is {self.max_time!r}; give seconds, or days, hours, minutes such as 1d12h, 90m, 1h30m"
        if self.best_metric != "loss" and not self.generate_documents:
            yield "best_metric", f"is {self.best_metric!r}, which needs train.generate_documents above 0"
        if self.export_best and not self.keep_best_checkpoint:
            yield "export_best", "is true, which needs train.keep_best_checkpoint=true"
        if (self.patience or self.keep_best_checkpoint) and not self.evaluate_every_steps:
            yield "evaluate_every_steps", "is 0, but train.patience and train.keep_best_checkpoint need evaluations"

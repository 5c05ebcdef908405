"""The `train:` and `guards:` sections: the loop, and what keeps it from hanging and from bad batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from transpooler.common import at_least, duration_s, one_of
from transpooler.trainer.config.stages import LoraConfig, StageConfig, length_problems


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    steps: int = at_least(1, 300_000)
    """Optimizer steps of the whole run."""
    init_from: str | None = None
    """Folder, or repository of the hub, of a model whose weights start the run: an export of ours, also with another
    pooling schedule; a BART, PEGASUS, T5 or one of their kin; or a causal language model, which then reads the slots.
    `model`, `generation` and `data` take over what follows from it. null starts from random weights."""
    init_encoder_from: str | None = None
    """compressor: folder of the causal language model whose layers read the document; null = that of init_from."""
    freeze: tuple[str, ...] = ()
    """Patterns of names of parameters that are not trained, such as 'model.encoder.*'; * stands for anything, dots
    included (Python's fnmatch)."""
    stages: tuple[StageConfig, ...] = ()
    """Parts of the run, one after the other, each with its steps, what is frozen and its learning rates; each begins
    with a fresh optimizer and a schedule of its own. None = the whole run is one."""
    lora: LoraConfig | None = None
    """Train factors of low rank in place of chosen linear maps (extra `lora`); they are merged at export. train.freeze
    does not mean the factors, unless a pattern names `lora_`."""
    resume: bool = True
    """Continue from the run folder's newest valid checkpoint, if it has one; false refuses to touch such a run."""
    checkpoint_every_steps: int = at_least(1, 1000)
    """Steps between checkpoints; the last step is always saved."""
    keep_last_checkpoints: int = at_least(1, 2)
    """How many of the newest checkpoints stay; older ones are removed."""
    keep_checkpoint_every_steps: int = at_least(0, 0)
    """Checkpoints of multiples of this step are never removed; 0 = no such multiples."""
    max_time: str | float | None = None
    """Wall-clock limit of one start: seconds, or such as '90m' or '1d12h'. Then save and exit with 75; null = none."""
    evaluate_every_steps: int = at_least(0, 1000)
    """Steps between evaluations of the held-out loss; the last step is always evaluated. 0 turns it off."""
    max_validation_documents: int = at_least(0, 512)
    """The held-out loss is taken over this many documents from the start of the validation split."""
    generate_documents: int = at_least(0, 0)
    """With each evaluation, generate summaries of this many documents from the start of the validation split (as
    `generation` says) and score them by ROUGE; 0 turns it off."""
    best_metric: str = one_of(("loss", "rouge1", "rouge2", "rougeL", "rougeLsum"), "loss")
    """What makes a checkpoint the best: loss, or rouge1, rouge2, rougeL, rougeLsum of the generated summaries."""
    keep_best_checkpoint: bool = False
    """Save a checkpoint whenever an evaluation is the best so far, and keep it (checkpoints/best names it)."""
    export_best: bool = False
    """At the end export the best checkpoint instead of the last."""
    patience: int = at_least(0, 0)
    """Stop after this many evaluations in a row that did not improve best_metric; 0 trains to the end."""
    target_loss: float = at_least(0, 0.0)
    """Stop as soon as an evaluation's held-out loss is at most this; 0 trains to the end."""
    log_every_steps: int = at_least(1, 10)
    """Steps between lines of metrics."""
    tensorboard: bool = True
    wandb_project: str | None = None
    """Log to this project of Weights & Biases, too (extra `wandb`; WANDB_MODE=offline works without network)."""
    profile_start_step: int = at_least(0, 10)
    """First step (0-based, of this start of the run) in the profiler's window."""
    profile_steps: int = at_least(0, 0)
    """How many steps rank 0 records with torch.profiler, as RUN/profile/step<N>.json (a Chrome trace); 0 = off."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        yield from length_problems(self.stages, self.steps)
        if self.max_time is not None and not (duration_s(self.max_time) or 0) > 0:
            yield "max_time", f"is {self.max_time!r}; give seconds, or days, hours, minutes such as 1d12h, 90m, 1h30m"
        if self.target_loss and self.best_metric != "loss":
            yield "target_loss", f"is {self.target_loss}, which needs train.best_metric=loss"
        if self.best_metric != "loss" and not self.generate_documents:
            yield "best_metric", f"is {self.best_metric!r}, which needs train.generate_documents above 0"
        if self.export_best and not self.keep_best_checkpoint:
            yield "export_best", "is true, which needs train.keep_best_checkpoint=true"
        if (self.patience or self.target_loss or self.keep_best_checkpoint) and not self.evaluate_every_steps:
            who = "train.patience, target_loss and keep_best_checkpoint"
            yield "evaluate_every_steps", f"is 0, but {who} need evaluations"


@dataclass(frozen=True, kw_only=True)
class GuardsConfig:
    """The watchdog and the detection of loss spikes."""

    watchdog_timeout_s: float = at_least(0, 1200.0)
    """If no step ends for this long, every rank writes its stacks to RUN/stacks and the job ends with code 70; 0 = no
    watchdog. Below engine.collective_timeout_s, and above the longest step, checkpoint or evaluation batch."""
    silent_rank_s: float = at_least(1, 30.0)
    """The job also ends when a rank gives no sign of life for this long (killed, stopped, its host gone)."""
    spike_threshold: float = at_least(0, 6.0)
    """A loss this many standard deviations above its moving mean is reported as a spike; 0 = never."""
    skip_spikes: bool = False
    """Make no update in a step whose loss is a spike."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        if self.skip_spikes and not self.spike_threshold:
            yield "skip_spikes", "is true, which needs guards.spike_threshold above 0"

"""The whole configuration as one tree of frozen dataclasses: the single place of every default."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from common.durations import duration_s
from data_pipeline.config import SPLITS, DataConfig, PrepareConfig
from model.architecture import Architecture

SCHEDULES = ("polynomial", "cosine", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
NOT_NEGATIVE = ("keep_checkpoint_every_steps", "watchdog_timeout_s", "spike_threshold")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    learning_rate: float = 5e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled weight decay; norms, biases and embeddings have none."""
    scorer_learning_rate_scale: float = 1.0
    """Learning rate of the poolers' scorers, as a multiple of learning_rate."""
    schedule: str = "polynomial"
    """polynomial (linear by default), cosine or constant, after the warm-up."""
    warmup_steps: int = 5000
    """Steps of linear warm-up from 0."""
    polynomial_power: float = 1.0
    final_learning_rate_ratio: float = 0.0
    """Learning rate at the last step, as a share of the peak."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 turns clipping off."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.schedule not in SCHEDULES:
            yield "schedule", f"is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}"
        if self.learning_rate <= 0:
            yield "learning_rate", f"is {self.learning_rate}; must be positive"
        for name in ("weight_decay", "warmup_steps", "max_grad_norm", "scorer_learning_rate_scale"):
            if getattr(self, name) < 0:
                yield name, f"is {getattr(self, name)}; must not be negative"
        if not 0 <= self.final_learning_rate_ratio <= 1:
            yield "final_learning_rate_ratio", f"is {self.final_learning_rate_ratio}; must lie in [0, 1]"


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed: memory, precision and communication."""

    zero_stage: int = 1
    """What ZeRO shards over the ranks: 0 nothing, 1 optimizer states, 2 + gradients, 3 + parameters."""
    precision: str = "fp32"
    """fp32, bf16 (float32 master weights) or fp16 (dynamic loss scaling; CUDA only)."""
    micro_batch_size: int = 1
    """Documents per rank in one forward pass; gradients accumulate up to data.batch_size."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass instead of keeping their activations."""
    collective_timeout_s: float = 1800.0
    """A collective that takes longer than this ends the job."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Any fragment of a DeepSpeed configuration, merged last; keys that we set ourselves are errors."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.zero_stage not in (0, 1, 2, 3):
            yield "zero_stage", f"is {self.zero_stage}; DeepSpeed knows 0, 1, 2 and 3"
        if self.precision not in PRECISIONS:
            yield "precision", f"is {self.precision!r}; choose one of {', '.join(PRECISIONS)}"
        elif self.precision != "fp32" and self.zero_stage == 0:
            yield "zero_stage", f"is 0, where DeepSpeed keeps no float32 weights beside {self.precision}; use 1"
        if self.micro_batch_size < 1:
            yield "micro_batch_size", f"is {self.micro_batch_size}; must be at least 1"
        if self.collective_timeout_s <= 0:
            yield "collective_timeout_s", f"is {self.collective_timeout_s}; must be positive"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    steps: int = 300_000
    """Optimizer steps of the whole run."""
    init_from: str | None = None
    """Folder of an exported model whose weights start the run (fine-tuning); null starts from random weights."""
    resume: bool = True
    """Continue from the run folder's newest valid checkpoint, if it has one; false refuses to touch such a run."""
    checkpoint_every_steps: int = 1000
    """Save a checkpoint every so many steps, and at the end."""
    keep_last_checkpoints: int = 2
    """Older checkpoints are removed."""
    keep_checkpoint_every_steps: int = 0
    """Checkpoints of multiples of this step stay for good; 0 keeps none of them."""
    max_time: str | float | None = None
    """Wall-clock limit of one start: seconds, or such as '90m' or '1d12h'. Then save and exit with 75; null = none."""
    watchdog_timeout_s: float = 1200.0
    """When no step ends for so long, every rank writes its stacks to RUN/stacks and the job ends; 0 = no watchdog."""
    spike_threshold: float = 6.0
    """A loss so many standard deviations above its moving mean is reported as a spike; 0 = not looked for."""
    skip_spikes: bool = False
    """Leave the update of such a step out."""
    evaluate_every_steps: int = 1000
    """Held-out loss every so many steps, and at the end; 0 turns it off."""
    max_validation_documents: int = 512
    """Held-out loss is taken over the first so many documents of the validation split."""
    log_every_steps: int = 10
    """One line of metrics every so many steps."""
    tensorboard: bool = True

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("steps", "checkpoint_every_steps", "keep_last_checkpoints", "log_every_steps"):
            if getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}; must be at least 1"
        for name in ("evaluate_every_steps", "max_validation_documents", *NOT_NEGATIVE):
            if getattr(self, name) < 0:
                yield name, f"is {getattr(self, name)}; must not be negative"
        if self.max_time is not None and not (duration_s(self.max_time) or 0) > 0:
            yield "max_time", f"is {self.max_time!r}; give seconds, or days, hours, minutes such as 1d12h, 90m, 1h30m"


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How summaries are generated (evaluate, summarize)."""

    num_beams: int = 4
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    """Forbid n-grams from repeating; 0 = off."""
    batch_size: int = 8
    """Documents generated together."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("num_beams", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}; must be at least 1"
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            yield "min_new_tokens", f"is {self.min_new_tokens}; must lie in 0..max_new_tokens = {self.max_new_tokens}"
        if self.no_repeat_ngram_size < 0:
            yield "no_repeat_ngram_size", f"is {self.no_repeat_ngram_size}; must not be negative"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """`transpooler evaluate`: generated summaries against references."""

    split: str = "test"
    max_documents: int | None = None
    """Evaluate the first so many documents; null = all."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.split not in SPLITS:
            yield "split", f"is {self.split!r}; choose one of {', '.join(SPLITS)}"
        if self.max_documents is not None and self.max_documents < 1:
            yield "max_documents", f"is {self.max_documents}; must be at least 1, or null for all"


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: from documents to a trained, evaluated model."""

    run: str = "runs/default"
    """Folder of the run: config.yaml, metrics.jsonl, tensorboard/, checkpoints/, export/, evaluation/, report.html."""
    seed: int = 0
    """Seeds weights, order of documents, denoising and dropout."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: Architecture = field(default_factory=Architecture)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Rules that span sections."""
        if self.engine.micro_batch_size > self.data.batch_size:
            yield (
                "engine.micro_batch_size",
                f"is {self.engine.micro_batch_size}, above data.batch_size = {self.data.batch_size}",
            )
        if self.data.objective == "summarize" and self.data.train_split == "pretrain":
            yield (
                "data.objective",
                "is 'summarize', but split pretrain has no summaries; use denoise or gap_sentences",
            )
        if self.optimizer.warmup_steps > self.train.steps:
            yield (
                "optimizer.warmup_steps",
                f"is {self.optimizer.warmup_steps}, above train.steps = {self.train.steps}: the peak is never reached",
            )

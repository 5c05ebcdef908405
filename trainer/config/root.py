"""The whole configuration as one tree of frozen dataclasses, here and in config_*.py: the place of every default."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from transpooler.common.durations import duration_s
from transpooler.data_pipeline.config import DataConfig, PrepareConfig
from transpooler.model.architecture import Architecture
from transpooler.trainer.config.cluster import ClusterConfig
from transpooler.trainer.config.evaluation import EvaluationConfig, GenerationConfig
from transpooler.trainer.config.guards import GuardsConfig
from transpooler.trainer.config.optimizer import OptimizerConfig

__all__ = [
    "ClusterConfig",
    "Config",
    "EngineConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "GuardsConfig",
    "OptimizerConfig",
    "TrainConfig",
]

PRECISIONS = ("fp32", "bf16", "fp16")
CHECKPOINTING = ("none", "torch", "deepspeed")
OFFLOAD = ("none", "cpu", "nvme")
BEST_METRICS = ("loss", "rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed: memory, precision and communication."""

    zero_stage: int = 1
    """What ZeRO shards over the ranks: 0 nothing, 1 optimizer states, 2 + gradients, 3 + parameters."""
    precision: str = "fp32"
    """fp32, bf16 (float32 master weights) or fp16 (dynamic loss scaling; CUDA only)."""
    micro_batch_size: int = 1
    """Documents per rank in one forward pass; gradients accumulate up to data.batch_size."""
    offload_optimizer: str = "none"
    """Where optimizer states live: none (with the weights), cpu or nvme (ZeRO 1 to 3; nvme: 3). cpu compiles
    DeepSpeed's CPU Adam at first use."""
    offload_parameters: str = "none"
    """Where the weights of ZeRO 3 live between uses: none, cpu or nvme."""
    nvme_path: str | None = None
    """Folder on a fast local disk for what is offloaded to nvme."""
    activation_checkpointing: str = "none"
    """Recompute encoder layers, poolers and decoder layers in the backward pass instead of keeping their activations:
    none, torch, or deepspeed (which alone can keep what it saves in the CPU's memory or partition it)."""
    checkpoint_in_cpu: bool = False
    """activation_checkpointing=deepspeed: layer inputs wait for the backward pass in the CPU's memory (without a
    GPU they are there anyway)."""
    partition_activations: bool = False
    """activation_checkpointing=deepspeed: layer inputs are spread over model-parallel ranks. We have one such
    rank, so this saves nothing here; it is DeepSpeed's switch, passed on."""
    compile: bool = False
    """torch.compile the model (ZeRO 0 to 2, no activation checkpointing): slow first steps, faster ones after."""
    peak_tflops: float | None = None
    """What one device can do in this precision, in 10^12 floating-point operations a second, for `mfu` in the metrics;
    null looks well-known GPUs up and leaves mfu out on others."""
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
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            yield "peak_tflops", f"is {self.peak_tflops}; must be positive, or null"
        yield from self._offload_problems()
        yield from self._checkpointing_problems()

    def _offload_problems(self) -> Iterator[tuple[str, str]]:
        lowest = {"offload_optimizer": {"cpu": 1, "nvme": 3}, "offload_parameters": {"cpu": 3, "nvme": 3}}
        for name, needs in lowest.items():
            place = getattr(self, name)
            if place not in OFFLOAD:
                yield name, f"is {place!r}; choose one of {', '.join(OFFLOAD)}"
            elif place != "none" and self.zero_stage < needs[place]:
                yield name, f"is {place!r}, which needs engine.zero_stage={needs[place]}, not {self.zero_stage}"
            if place == "nvme" and self.nvme_path is None:
                yield "nvme_path", f"is null, but engine.{name} is 'nvme'; name a folder on a local disk"
        if self.compile and self.zero_stage == 3:
            yield "compile", "is true, but the weights of engine.zero_stage=3 come and go between layers; use 0 to 2"
        if self.compile and self.activation_checkpointing != "none":
            yield (
                "compile",
                "is true, but torch cannot compile checkpointed layers for changing lengths; use one of the two",
            )

    def _checkpointing_problems(self) -> Iterator[tuple[str, str]]:
        if self.activation_checkpointing not in CHECKPOINTING:
            yield (
                "activation_checkpointing",
                f"is {self.activation_checkpointing!r}; choose one of {', '.join(CHECKPOINTING)}",
            )
        for name in ("checkpoint_in_cpu", "partition_activations"):
            if getattr(self, name) and self.activation_checkpointing != "deepspeed":
                yield name, "is true, which needs engine.activation_checkpointing=deepspeed"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    steps: int = 300_000
    """Optimizer steps of the whole run."""
    init_from: str | None = None
    """Folder of a model whose weights start the run: an export of ours, also with another pooling schedule, or a BART
    of `transformers`. What does not match is reported. null starts from random weights."""
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
    evaluate_every_steps: int = 1000
    """Held-out loss every so many steps, and at the end; 0 turns it off."""
    max_validation_documents: int = 512
    """Held-out loss is taken over the first so many documents of the validation split."""
    generate_documents: int = 0
    """Summaries of the first so many validation documents are generated (as `generation` says) and scored by ROUGE with
    each evaluation; 0 turns it off."""
    best_metric: str = "loss"
    """What makes a checkpoint the best: loss, or rouge1, rouge2, rougeL, rougeLsum of the generated summaries."""
    keep_best_checkpoint: bool = False
    """Save a checkpoint at each evaluation that is better than all before and keep it (checkpoints/best names it)."""
    export_best: bool = False
    """Export the best checkpoint at the end, not the last."""
    patience: int = 0
    """Stop after so many evaluations in a row without a better best_metric; 0 trains to the end."""
    log_every_steps: int = 10
    """One line of metrics every so many steps."""
    tensorboard: bool = True
    wandb_project: str | None = None
    """Log to this project of Weights & Biases, too (extra `wandb`; WANDB_MODE=offline works without network)."""
    profile_start_step: int = 10
    """First step (0-based, of this start of the run) in the profiler's window."""
    profile_steps: int = 0
    """Steps that rank 0 records with torch.profiler, as RUN/profile/step<N>.json (a Chrome trace); 0 = off."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("steps", "checkpoint_every_steps", "keep_last_checkpoints", "log_every_steps"):
            if getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}; must be at least 1"
        for name in (
            *("evaluate_every_steps", "max_validation_documents", "generate_documents", "patience"),
            *("profile_start_step", "profile_steps", "keep_checkpoint_every_steps"),
        ):
            if getattr(self, name) < 0:
                yield name, f"is {getattr(self, name)}; must not be negative"
        if self.max_time is not None and not (duration_s(self.max_time) or 0) > 0:
            yield "max_time", f"is {self.max_time!r}; give seconds, or days, hours, minutes such as 1d12h, 90m, 1h30m"
        yield from self._best_problems()

    def _best_problems(self) -> Iterator[tuple[str, str]]:
        if self.best_metric not in BEST_METRICS:
            yield "best_metric", f"is {self.best_metric!r}; choose one of {', '.join(BEST_METRICS)}"
        elif self.best_metric != "loss" and not self.generate_documents:
            yield "best_metric", f"is {self.best_metric!r}, which needs train.generate_documents above 0"
        if self.export_best and not self.keep_best_checkpoint:
            yield "export_best", "is true, which needs train.keep_best_checkpoint=true"
        if (self.patience or self.keep_best_checkpoint) and not self.evaluate_every_steps:
            yield "evaluate_every_steps", "is 0, but train.patience and train.keep_best_checkpoint need evaluations"


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
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Rules that span sections."""
        if self.data.batch_tokens is None and self.engine.micro_batch_size > self.data.batch_size:
            yield (
                "engine.micro_batch_size",
                f"is {self.engine.micro_batch_size}, above data.batch_size = {self.data.batch_size}",
            )
        if self.data.needs_summaries and self.data.train_split == "pretrain":
            yield (
                "data.objective",
                f"is {self.data.objective!r}, but split pretrain has no summaries; use denoise or gap_sentences",
            )
        yield from self._optimizer_problems()
        needs_validation = self.train.patience or self.train.keep_best_checkpoint or self.train.generate_documents
        if needs_validation and self.data.validation_split is None:
            yield (
                "data.validation_split",
                "is null, but train.patience, keep_best_checkpoint or generate_documents is on",
            )
        if self.train.generate_documents and not self.data.needs_summaries:
            yield "train.generate_documents", "is above 0, which needs data.objective=summarize: there is no summary"
        for name in ("max_source_tokens", "max_target_tokens"):
            tokens, rows = getattr(self.data, name), self.model.max_positions
            if self.model.positions == "learned" and tokens > rows:
                yield f"data.{name}", f"is {tokens}, above model.max_positions = {rows}"

    def _optimizer_problems(self) -> Iterator[tuple[str, str]]:
        """The optimizer against ZeRO, offload and the run's length."""
        name, engine = self.optimizer.name, self.engine
        if name != "adamw" and engine.zero_stage == 0:
            yield "optimizer.name", f"is {name!r}, which works under ZeRO only; use engine.zero_stage=1"
        if name == "muon" and self.optimizer.max_grad_norm:
            yield (
                "optimizer.max_grad_norm",
                f"is {self.optimizer.max_grad_norm}, but with optimizer.name=muon DeepSpeed would clip the finished "
                "updates, not the gradients; use 0 (Muon normalises them anyway)",
            )
        if name != "adamw" and engine.offload_optimizer != "none":
            yield "optimizer.name", f"is {name!r}, but engine.offload_optimizer works with adamw"
        if (
            self.optimizer.schedule == "wsd"
            and self.optimizer.warmup_steps + self.optimizer.decay_steps > self.train.steps
        ):
            yield (
                "optimizer.decay_steps",
                f"is {self.optimizer.decay_steps}; with warmup_steps = {self.optimizer.warmup_steps} it exceeds "
                f"train.steps = {self.train.steps}",
            )
        if self.optimizer.warmup_steps > self.train.steps:
            yield (
                "optimizer.warmup_steps",
                f"is {self.optimizer.warmup_steps}, above train.steps = {self.train.steps}: the peak is never reached",
            )

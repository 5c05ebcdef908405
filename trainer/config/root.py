"""The whole configuration as one tree of frozen dataclasses, a file a section, and the rules that span sections."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from transpooler.data_pipeline.config import DataConfig, PrepareConfig
from transpooler.model.architecture import Architecture
from transpooler.trainer.config.cluster import ClusterConfig
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.config.evaluation import EvaluationConfig, GenerationConfig
from transpooler.trainer.config.guards import GuardsConfig
from transpooler.trainer.config.optimizer import OPTIMIZERS, OptimizerConfig
from transpooler.trainer.config.train import TrainConfig


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
        if self.data.objective == "summarize" and self.data.train_split == "pretrain":
            yield (
                "data.objective",
                "is 'summarize', but split pretrain has no summaries; use denoise or gap_sentences",
            )
        yield from self._optimizer_problems()
        yield from self._timeout_problems()
        needs_validation = self.train.patience or self.train.keep_best_checkpoint or self.train.generate_documents
        if needs_validation and self.data.validation_split is None:
            yield (
                "data.validation_split",
                "is null, but train.patience, keep_best_checkpoint or generate_documents is on",
            )
        if self.train.generate_documents and self.data.objective != "summarize":
            yield "train.generate_documents", "is above 0, which needs data.objective=summarize: there is no summary"
        for name in ("max_source_tokens", "max_target_tokens"):
            tokens, rows = getattr(self.data, name), self.model.max_positions
            if self.model.positions == "learned" and tokens > rows:
                yield f"data.{name}", f"is {tokens}, above model.max_positions = {rows}"

    def _optimizer_problems(self) -> Iterator[tuple[str, str]]:
        """The optimizer against ZeRO, offload and the run's length."""
        optimizer, engine, steps = self.optimizer, self.engine, self.train.steps
        if (traits := OPTIMIZERS.get(optimizer.name)) is not None:
            if traits.needs_zero and not engine.shards_states:
                yield "optimizer.name", f"is {optimizer.name!r}, which works under ZeRO only; use engine.zero_stage=1"
            if traits.whole_matrices and optimizer.max_grad_norm:
                yield (
                    "optimizer.max_grad_norm",
                    f"is {optimizer.max_grad_norm}, but with optimizer.name={optimizer.name} DeepSpeed would clip the "
                    "finished updates, not the gradients; use 0 (Muon normalises them anyway)",
                )
            if engine.offloads_optimizer and not traits.offloads:
                able = ", ".join(name for name, each in OPTIMIZERS.items() if each.offloads)
                yield "optimizer.name", f"is {optimizer.name!r}, but engine.offload_optimizer works with {able}"
        if optimizer.schedule == "wsd" and optimizer.warmup_steps + optimizer.decay_steps > steps:
            yield (
                "optimizer.decay_steps",
                f"is {optimizer.decay_steps}; with warmup_steps = {optimizer.warmup_steps} it exceeds "
                f"train.steps = {steps}",
            )
        if optimizer.warmup_steps > steps:
            yield (
                "optimizer.warmup_steps",
                f"is {optimizer.warmup_steps}, above train.steps = {steps}: the peak is never reached",
            )

    def _timeout_problems(self) -> Iterator[tuple[str, str]]:
        """Whoever knows more about a hang must speak first: the watchdog, then the collective, then the launcher."""
        watchdog_s, collective_s = self.guards.watchdog_timeout_s, self.engine.collective_timeout_s
        hang_s = self.cluster.hang_timeout_s
        if watchdog_s and watchdog_s >= collective_s:
            yield (
                "guards.watchdog_timeout_s",
                f"is {watchdog_s:g}, not below engine.collective_timeout_s = {collective_s:g}, so the watchdog could "
                "never name the rank that hangs; lower it (0 = off), or raise engine.collective_timeout_s",
            )
        if hang_s and hang_s <= collective_s:
            yield (
                "cluster.hang_timeout_s",
                f"is {hang_s:g}, not above engine.collective_timeout_s = {collective_s:g}, so no rank could tell what "
                "it waited for; raise it (0 = never), or lower engine.collective_timeout_s",
            )

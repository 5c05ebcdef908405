"""The whole configuration as one tree of frozen dataclasses, a file a section, and the rules that span sections."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transpooler.common import UserError, at_least
from transpooler.data_pipeline.config import DataConfig, PrepareConfig
from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.model.ops.schedule import OPERATOR_NAMES, WHOLE_OPERATORS
from transpooler.trainer.config.cluster import ClusterConfig
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.config.evaluation import EvaluationConfig, GenerationConfig
from transpooler.trainer.config.optimizer import OPTIMIZERS, OptimizerConfig
from transpooler.trainer.config.stages import Stage, plan_stages
from transpooler.trainer.config.train import GuardsConfig, TrainConfig

MODEL_KINDS: dict[str, type] = {"seq2seq": Architecture, "compressor": CompressorArchitecture}
"""What the `model:` section is, by its `kind`."""


def model_schema(values: Mapping[str, Any]) -> type:
    """The dataclass of the `model:` section of these values; that of seq2seq where its kind is unknown."""
    section = values.get("model")
    kind = section.get("kind", "seq2seq") if isinstance(section, Mapping) else "seq2seq"
    return MODEL_KINDS.get(kind, Architecture) if isinstance(kind, str) else Architecture


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: from documents to a trained, evaluated model."""

    run: str = "runs/default"
    """Folder of the run: config.yaml, metrics.jsonl, tensorboard/, checkpoints/, export/, evaluation/, report.html."""
    seed: int = at_least(0, 0, largest=math.inf)
    """Seeds weights, order of documents, denoising and dropout."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: Architecture | CompressorArchitecture = field(default_factory=Architecture)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def seq2seq(self) -> Architecture:
        """The `model:` section of an encoder-decoder; UserError for other kinds."""
        if not isinstance(self.model, Architecture):
            raise UserError(f"model.kind is {self.model.kind!r}; this needs seq2seq")
        return self.model

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The run's stages, at least one."""
        return plan_stages(self.train.stages, self.train.steps, self.train.freeze, self.optimizer)

    @property
    def name_patterns(self) -> dict[str, tuple[str, ...]]:
        """All patterns of parameters' names, by the setting that holds them."""
        patterns = {"train.freeze": self.train.freeze}
        groups = {"optimizer": self.optimizer.groups}
        for number, stage in enumerate(self.train.stages):
            patterns[f"train.stages[{number}].freeze"] = stage.freeze or ()
            groups[f"train.stages[{number}]"] = stage.groups or ()
        return patterns | {
            f"{key}.groups[{number}].match": (group.match,)
            for key, each in groups.items()
            for number, group in enumerate(each)
        }

    def problems(self) -> Iterator[tuple[str, str]]:
        """Rules that span sections."""
        data, train, micro_batch_size = self.data, self.train, self.engine.micro_batch_size
        if data.batch_tokens is None and micro_batch_size > data.batch_size:
            yield "engine.micro_batch_size", f"is {micro_batch_size}, above data.batch_size = {data.batch_size}"
        if data.needs_summaries and data.train_split == "pretrain":
            problem = "but split pretrain has no summaries; use denoise or gap_sentences"
            yield "data.objective", f"is {data.objective!r}, {problem}"
        yield from self._optimizer_problems()
        yield from self._timeout_problems()
        needs = ("patience", "target_loss", "keep_best_checkpoint", "generate_documents")
        if data.validation_split is None and (on := [name for name in needs if getattr(train, name)]):
            yield "data.validation_split", f"is null, but train.{on[0]} needs one"
        if train.generate_documents and not data.needs_summaries:
            yield "train.generate_documents", "is above 0, which needs data.objective=summarize: there is no summary"
        yield from self._model_problems()
        if self.engine.context_parallel_size > 1:
            yield from self._context_problems()

    def _model_problems(self) -> Iterator[tuple[str, str]]:
        """The model against lengths of documents, and how texts begin."""
        data, model = self.data, self.model
        if isinstance(model, Architecture) and model.positions == "learned":
            lengths = {"max_target_tokens": data.max_target_tokens}
            if model.block_positions == "document":
                lengths["max_source_tokens"] = data.max_source_tokens
            elif (longest := model.block_size or data.max_source_tokens) > model.max_positions:
                size = "null" if model.block_size is None else model.block_size
                problem = f"is {size}, so blocks have up to {longest} tokens, above model.max_positions"
                yield "model.block_size", f"{problem} = {model.max_positions}"
            for name, tokens in lengths.items():
                if tokens > model.max_positions:
                    yield f"data.{name}", f"is {tokens}, above model.max_positions = {model.max_positions}"
        first, prefix = self.generation.forced_bos_token_id, list(data.target_prefix_ids)
        if first is not None and prefix and prefix[0] != first:
            problem = f"is {first}, but data.target_prefix_ids is {prefix}: make them begin alike"
            yield "generation.forced_bos_token_id", problem

    def _context_problems(self) -> Iterator[tuple[str, str]]:
        """The model against ranks that share documents."""
        size = self.engine.context_parallel_size
        if self.model.block_size is None:
            yield "model.block_size", f"is null, but {size} ranks share documents by blocks; set it"
        if isinstance(self.model, Architecture) and self.model.stagger_blocks:
            yield (
                "model.stagger_blocks",
                f"is true, but {size} ranks share documents by blocks that see no other; use false",
            )
        if not self.model.pooling:
            yield "model.pooling", f"is empty, but {size} ranks share documents up to the last pooling; add one"
        for number, stage in enumerate(self.model.pooling):
            if stage.operator in WHOLE_OPERATORS:
                problem = f"is {stage.operator!r}, whose slots take from every token, so that {size} ranks cannot share"
                able = ", ".join(name for name in OPERATOR_NAMES if name not in WHOLE_OPERATORS)
                yield f"model.pooling[{number}].operator", f"{problem} a document; choose one of {able}"

    def _optimizer_problems(self) -> Iterator[tuple[str, str]]:
        """The optimizer against ZeRO, offload and the run's length."""
        optimizer, engine = self.optimizer, self.engine
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
        for stage in self.stages:
            yield from _schedule_problems(stage)

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


def _schedule_problems(stage: Stage) -> Iterator[tuple[str, str]]:
    """A schedule against the length of its stage."""
    optimizer, steps = stage.optimizer, f"{stage.key}.steps = {stage.steps}"
    warmup, decay = optimizer.warmup_steps, optimizer.decay_steps
    if optimizer.schedule == "wsd" and warmup + decay > stage.steps:
        yield "optimizer.decay_steps", f"is {decay}; with warmup_steps = {warmup} it exceeds {steps}"
    if warmup > stage.steps:
        yield "optimizer.warmup_steps", f"is {warmup}, above {steps}: the peak is never reached"

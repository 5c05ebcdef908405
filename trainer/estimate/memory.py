"""What a run will need, before anything is allocated: `transpooler train CONFIG --dry-run`.

Parameters come from the model on the meta device. Model states of ZeRO 2 and 3 are DeepSpeed's own estimates
(deepspeed.runtime.zero); it has none for ZeRO 0 and 1, where the same accounting gives 16 bytes a parameter in fp32
(weights, gradients, two moments) and 18 with 16-bit weights. A frozen parameter costs its weight alone. Activations:
`activations`. Of a run's stages (`train.stages`) each number is that of the stage where it is largest.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch
from transformers import PreTrainedTokenizerFast

from transpooler.data_pipeline.limits import cut_length
from transpooler.data_pipeline.objectives import OBJECTIVES
from transpooler.data_pipeline.order.corpus import batch_order, cut_lengths, open_corpora, tokenizer_folder
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import Config
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.engine.engine import estimate_states
from transpooler.trainer.engine.parameters import check_patterns, freeze
from transpooler.trainer.estimate.activations import activation_bytes
from transpooler.trainer.estimate.flops import document_work
from transpooler.trainer.estimate.products import Trained, trained_of
from transpooler.trainer.weights.lora import add_lora
from transpooler.trainer.weights.models import make_model

GIB = 2**30
RESERVE = 0.9
"""Share of the memory that the estimate may fill: the rest is for fragmentation, buffers and libraries."""


@dataclass(frozen=True)
class RunEstimate:
    """All sizes in bytes, of one rank unless said otherwise."""

    parameters: int
    trained: tuple[int, ...]
    """Parameters that each stage of the run trains."""
    largest_layer: int
    """Parameters of the largest layer: what ZeRO 3 gathers at least."""
    states: dict[int, tuple[int, int]]
    """ZeRO stage -> (device, host) bytes of weights, gradients, optimizer states; host is that of the whole machine."""
    activations: int
    checkpoint: int
    """On disk, of all ranks."""
    source_tokens_per_step: float
    target_tokens_per_step: float
    tflop_per_step: float
    num_documents: int
    steps_per_epoch: int
    epochs: float
    micro_batches: int
    memory: int
    """Memory that one rank has: that of its GPU, or its share of this machine's."""


def estimate_run(config: Config, world_size: int) -> RunEstimate:
    """Estimate a run on `world_size` ranks of one machine. UserError where the shards are missing."""
    data, engine = config.data, config.engine
    corpora = open_corpora(data, data.train_split)
    lengths = [cut_lengths(corpus.dataset, data) for corpus in corpora]
    sources = np.concatenate(lengths).astype(np.int64)
    targets = _targets(config, np.concatenate([corpus.dataset.target_lengths for corpus in corpora]), sources)
    tokenizer = load_tokenizer(tokenizer_folder(data))
    vocab_size = len(tokenizer)
    parameters, largest, stages = _count_parameters(config, tokenizer)
    most = max(trained for trained, _ in stages)
    num_chunks = sum(order.num_chunks for order in batch_order(data, corpora, config.seed).corpora)
    steps_per_epoch = -(-num_chunks // data.chunks_per_step)
    batch = len(sources) / steps_per_epoch if data.batch_tokens else min(data.batch_size, len(sources))
    every = max(1, len(sources) // 200)
    work = [
        [
            document_work(config.model, vocab_size, int(source), int(target), parts).total
            for source, target in zip(sources[::every], targets[::every], strict=True)
        ]
        for _, parts in stages
    ]
    longest = (int(sources.max()), int(targets.max()))
    if data.batch_tokens:
        engine = replace(engine, micro_batch_size=(data.micro_batch_tokens or data.max_source_tokens) // longest[0])
    copy = 4 if config.engine.precision == "fp32" else 2  # in fp32, trained weights are among the 12 bytes
    return RunEstimate(
        parameters=parameters,
        trained=tuple(trained for trained, _ in stages),
        largest_layer=largest,
        states={stage: model_states(parameters, largest, stage, config.engine, world_size, most) for stage in range(4)},
        activations=max(activation_bytes(config.model, vocab_size, engine, *longest, parts) for _, parts in stages),
        checkpoint=most * 12 + (parameters - most if config.engine.precision == "fp32" else parameters) * copy,
        source_tokens_per_step=float(sources.mean() * batch),
        target_tokens_per_step=float(targets.mean() * batch),
        tflop_per_step=max(float(np.mean(each)) for each in work) * batch / 1e12,
        num_documents=len(sources),
        steps_per_epoch=steps_per_epoch,
        epochs=config.train.steps / steps_per_epoch,
        micro_batches=data.num_micro_batches(engine.data_parallel_size(world_size), engine.micro_batch_size),
        memory=_memory(world_size),
    )


def model_states(
    parameters: int, largest_layer: int, stage: int, engine: EngineConfig, world_size: int, trained: int | None = None
) -> tuple[int, int]:
    """(device, host) bytes of weights, gradients and optimizer states of one rank at a ZeRO stage.

    `trained` of the parameters have gradients and states; None: all of them.
    """
    trained = parameters if trained is None else trained
    offloads, at_stage = engine.offloads_optimizer and stage == engine.zero_stage, replace(engine, zero_stage=stage)
    offloads_weights = engine.shards_weights and stage == engine.zero_stage and engine.offload_parameters != "none"
    # fp32 has no second copy of the weights: 4 weights, 4 gradients, 8 moments. DeepSpeed's estimates assume 16 bit.
    weights, gradients, states = (4, 4, 8) if engine.precision == "fp32" else (2, 4, 12)
    if at_stage.shards_gradients and engine.precision != "fp32":
        with_weights = engine.offload_parameters != "none"
        device, in_host = estimate_states(trained, largest_layer, stage, world_size, offloads, with_weights)
        frozen = weights * (parameters - trained)
        if offloads_weights:
            return device, in_host + frozen
        return device + frozen // (world_size if at_stage.shards_weights else 1), in_host
    parts = {
        "weights": weights * parameters / (world_size if at_stage.shards_weights else 1),
        "gradients": gradients * trained / (world_size if at_stage.shards_gradients else 1),
        "states": states * trained / (world_size if at_stage.shards_states else 1),
    }
    on_host = [name for name, is_there in (("states", offloads), ("weights", offloads_weights)) if is_there]
    host = sum(parts.pop(name) * world_size for name in on_host)
    gathered = weights * largest_layer if at_stage.shards_weights else 0
    return int(sum(parts.values()) + gathered), int(host)


def describe(estimate: RunEstimate, config: Config, world_size: int) -> str:
    """The estimate for people; its last line begins with WARNING where the run will not fit."""
    engine = config.engine
    lines = [
        f"parameters          {estimate.parameters:,} (largest layer {estimate.largest_layer:,})",
        *_trained_lines(estimate, config),
        f"documents           {estimate.num_documents:,}; {estimate.steps_per_epoch:,} steps an epoch, "
        f"{estimate.epochs:.1f} epochs in {config.train.steps:,} steps",
        f"a step              {_step_size(config)} on {world_size} ranks{_groups(engine)}, {estimate.micro_batches} "
        f"micro batches of {engine.micro_batch_size} on each",
        f"tokens a step       {estimate.source_tokens_per_step:,.0f} source, "
        f"{estimate.target_tokens_per_step:,.0f} target; {estimate.tflop_per_step:.4g} TFLOP",
        f"activations a rank  {_gib(estimate.activations)} (longest documents; "
        f"engine.activation_checkpointing={engine.activation_checkpointing})",
        f"checkpoint on disk  {_gib(estimate.checkpoint)} each",
        f"memory of a rank    {_gib(estimate.memory)}",
        "model states and activations a rank, by ZeRO stage:",
    ]
    for stage, (device, host) in estimate.states.items():
        total = device + estimate.activations
        chosen = "  <- engine.zero_stage" if stage == engine.zero_stage else ""
        fits = "fits" if total <= RESERVE * estimate.memory else "does not fit"
        hosts = f", {_gib(host)} on the host" if host else ""
        lines.append(
            f"  ZeRO {stage}  {_gib(device)} + {_gib(estimate.activations)} = {_gib(total)}{hosts}  {fits}{chosen}"
        )
    needed = estimate.states[engine.zero_stage][0] + estimate.activations
    if needed > RESERVE * estimate.memory:
        lines.append(
            f"WARNING: this run needs about {_gib(needed)} a rank and has {_gib(estimate.memory)}; try a smaller "
            "engine.micro_batch_size, engine.activation_checkpointing=torch, a higher engine.zero_stage or "
            "engine.offload_optimizer=cpu"
        )
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _trained_lines(estimate: RunEstimate, config: Config) -> Iterator[str]:
    """What each stage trains; nothing where all is trained all the time."""
    if set(estimate.trained) == {estimate.parameters}:
        return
    for stage, trained in zip(config.stages, estimate.trained, strict=True):
        when = f" (steps {stage.first + 1:,} to {stage.last:,})" if len(estimate.trained) > 1 else ""
        yield f"trained             {trained:,}, {100 * trained / estimate.parameters:.1f} %{when}"


def _count_parameters(config: Config, tokenizer: PreTrainedTokenizerFast) -> tuple[int, int, list[tuple[int, Trained]]]:
    """Parameters of the model, of its largest layer, and what each stage trains, on the meta device."""
    with torch.device("meta"):
        model = make_model(config, tokenizer)
        model.tie_weights()
        if config.train.lora is not None:
            add_lora(model, config.train.lora, config.seed)
    whole = {name for each in model.modules() for name in getattr(each, "_no_split_modules", None) or ()}
    layers = [module for module in model.modules() if type(module).__name__ in whole]
    layers += [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    check_patterns(model, config.stages, config.name_patterns)
    stages = []
    for stage in config.stages:
        freeze(model, stage)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        stages.append((trained, trained_of(model)))
    return sum(parameter.numel() for parameter in model.parameters()), max(sizes), stages


def _groups(engine: EngineConfig) -> str:
    size = engine.context_parallel_size
    return f" in groups of {size} that share documents" if size > 1 else ""


def _step_size(config: Config) -> str:
    tokens = config.data.batch_tokens
    return f"{config.data.batch_size} documents" if tokens is None else f"{tokens:,} source tokens with padding"


def _targets(config: Config, summaries: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Lengths of what is generated: of the summaries, else about what the objective takes out of the source."""
    objective = OBJECTIVES[config.data.objective]
    lengths = summaries if objective.needs_summaries else sources * objective.target_share(config.data)
    data = config.data
    return cut_length(lengths.astype(np.int64), data.max_target_tokens, len(data.target_prefix_ids))


def _memory(world_size: int) -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total / world_size)

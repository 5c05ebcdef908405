"""What a run will need, before anything is allocated: `transpooler train CONFIG --dry-run`.

Parameters come from the model on the meta device. Model states of ZeRO 2 and 3 are DeepSpeed's own estimates
(deepspeed.runtime.zero); it has none for ZeRO 0 and 1, where the same accounting gives 16 bytes a parameter in fp32
(weights, gradients, two moments) and 18 with 16-bit weights. Activations are our count, `activation_bytes`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PreTrainedTokenizerFast

from transpooler.data_pipeline.limits import cut_length
from transpooler.data_pipeline.objectives import OBJECTIVES
from transpooler.data_pipeline.order.corpus import batch_order, cut_lengths, open_corpora, tokenizer_folder
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.trainer.config import Config
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.engine.engine import estimate_states
from transpooler.trainer.estimate.flops import forward_flops
from transpooler.trainer.weights.models import make_model

GIB = 2**30
RESERVE = 0.9
"""Share of the memory that the estimate may fill: the rest is for fragmentation, buffers and libraries."""


@dataclass(frozen=True)
class RunEstimate:
    """All sizes in bytes, of one rank unless said otherwise."""

    parameters: int
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
    parameters, largest = _count_parameters(config, tokenizer)
    num_chunks = sum(order.num_chunks for order in batch_order(data, corpora, config.seed).corpora)
    steps_per_epoch = -(-num_chunks // data.chunks_per_step)
    batch = len(sources) / steps_per_epoch if data.batch_tokens else min(data.batch_size, len(sources))
    every = max(1, len(sources) // 200)
    work = [
        forward_flops(config.model, vocab_size, int(source), int(target)).total
        for source, target in zip(sources[::every], targets[::every], strict=True)
    ]
    longest = (int(sources.max()), int(targets.max()))
    if data.batch_tokens:
        engine = replace(engine, micro_batch_size=(data.micro_batch_tokens or data.max_source_tokens) // longest[0])
    return RunEstimate(
        parameters=parameters,
        largest_layer=largest,
        states={stage: model_states(parameters, largest, stage, config.engine, world_size) for stage in range(4)},
        activations=activation_bytes(config.model, vocab_size, engine, *longest),
        checkpoint=parameters * (12 + (0 if config.engine.precision == "fp32" else 2)),
        source_tokens_per_step=float(sources.mean() * batch),
        target_tokens_per_step=float(targets.mean() * batch),
        tflop_per_step=3 * float(np.mean(work)) * batch / 1e12,
        num_documents=len(sources),
        steps_per_epoch=steps_per_epoch,
        epochs=config.train.steps / steps_per_epoch,
        micro_batches=data.num_micro_batches(world_size, engine.micro_batch_size),
        memory=_memory(world_size),
    )


def model_states(
    parameters: int, largest_layer: int, stage: int, engine: EngineConfig, world_size: int
) -> tuple[int, int]:
    """(device, host) bytes of weights, gradients and optimizer states of one rank at a ZeRO stage."""
    offloads, at_stage = engine.offloads_optimizer and stage == engine.zero_stage, replace(engine, zero_stage=stage)
    if at_stage.shards_gradients and engine.precision != "fp32":
        offloads_weights = engine.offload_parameters != "none"
        return estimate_states(parameters, largest_layer, stage, world_size, offloads, offloads_weights)
    # fp32 has no second copy of the weights: 4 weights, 4 gradients, 8 moments. DeepSpeed's estimates assume 16 bit.
    weights, gradients, states = (4, 4, 8) if engine.precision == "fp32" else (2, 4, 12)
    parts = {
        "weights": weights / (world_size if at_stage.shards_weights else 1),
        "gradients": gradients / (world_size if at_stage.shards_gradients else 1),
        "states": states / (world_size if at_stage.shards_states else 1),
    }
    host = parts.pop("states") * world_size if offloads else 0
    if engine.shards_weights and stage == engine.zero_stage and engine.offload_parameters != "none":
        host += parts.pop("weights") * world_size
    gathered = weights * largest_layer if at_stage.shards_weights else 0
    return int(parameters * sum(parts.values()) + gathered), int(parameters * host)


def activation_bytes(
    model: Architecture | CompressorArchitecture,
    vocab_size: int,
    engine: EngineConfig,
    source_tokens: int,
    target_tokens: int,
) -> int:
    """Bytes that one micro batch of documents of these lengths keeps for its backward pass, with fused attention.

    A layer keeps eight vectors a token (its input, q, k, v, the attention's output, three more around the two norms)
    and the inner width of its feed-forward network: once with ReLU, twice with GELU, four times with a gate. Dropout
    adds masks of one byte an element. With activation checkpointing a layer keeps only its input; the rest is kept for
    one layer at a time. The logits are kept twice, once in float32.
    """
    size = 4 if engine.precision == "fp32" else 2
    if isinstance(model, CompressorArchitecture):
        layers, width, dropout = *_compressor_layers(model, size, source_tokens, target_tokens), False
    else:
        layers, width, dropout = *_seq2seq_layers(model, size, source_tokens, target_tokens), model.dropout > 0
    kept = sum(whole for whole, _ in layers)
    if engine.activation_checkpointing != "none":
        inputs = 0 if engine.checkpoint_in_cpu else sum(least for _, least in layers)
        kept = inputs + max(whole for whole, _ in layers)
    logits = target_tokens * vocab_size * (4 + size)
    embeddings = (source_tokens + target_tokens) * width * (size + (1 if dropout else 0))
    return engine.micro_batch_size * (kept + logits + embeddings)


Layers = list[tuple[int, int]]
"""(bytes that a layer keeps, bytes of its input alone)."""


def _seq2seq_layers(model: Architecture, size: int, source_tokens: int, target_tokens: int) -> tuple[Layers, int]:
    """The layers of the encoder-decoder, and its width; `size` is that of an element."""
    width = model.d_model
    inner = model.ffn_dim * (4 if model.gated else 1 if model.activation == "relu" else 2)
    masks = 2 * width if model.dropout else 0
    full = (8 * width + inner) * size + masks
    layers: Layers = []
    length = source_tokens
    stages = {stage.after_layer: stage for stage in model.pooling}
    for layer in range(1, model.encoder_layers + 1):
        layers.append((length * full, length * width * size))
        if (stage := stages.get(layer)) is not None:
            layers.append((length * (width * size + 16), length * width * size))
            length = stage.slots(length)
    cross = (5 * width * size + (width if model.dropout else 0)) * target_tokens + 2 * width * size * length
    layers += [(target_tokens * full + cross, target_tokens * width * size)] * model.decoder_layers
    return layers, width


def _compressor_layers(
    model: CompressorArchitecture, size: int, source_tokens: int, target_tokens: int
) -> tuple[Layers, int]:
    """The layers of the hosted encoder and of the reader, and the encoder's width. Their networks have gates."""
    layers: Layers = []
    length = source_tokens
    stages = {stage.after_layer: stage for stage in model.pooling}

    def add(config: dict[str, Any], tokens: int) -> None:
        inner = 8 * config["hidden_size"] + 4 * config["intermediate_size"]
        layers.append((tokens * inner * size, tokens * config["hidden_size"] * size))

    for layer in range(model.num_layers + 1):
        if layer:
            add(model.encoder, length)
        if (stage := stages.get(layer)) is not None:
            length = stage.slots(length)
    for _ in range(model.reader["num_hidden_layers"]):
        add(model.reader, length + target_tokens)
    return layers, model.encoder["hidden_size"]


def describe(estimate: RunEstimate, config: Config, world_size: int) -> str:
    """The estimate for people; its last line begins with WARNING where the run will not fit."""
    engine = config.engine
    lines = [
        f"parameters          {estimate.parameters:,} (largest layer {estimate.largest_layer:,})",
        f"documents           {estimate.num_documents:,}; {estimate.steps_per_epoch:,} steps an epoch, "
        f"{estimate.epochs:.1f} epochs in {config.train.steps:,} steps",
        f"a step              {_step_size(config)} on {world_size} ranks, {estimate.micro_batches} micro "
        f"batches of {engine.micro_batch_size} on each",
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


def _count_parameters(config: Config, tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Parameters of the model and of its largest layer, on the meta device."""
    with torch.device("meta"):
        model = make_model(config, tokenizer)
    whole = {name for each in model.modules() for name in getattr(each, "_no_split_modules", None) or ()}
    layers = [module for module in model.modules() if type(module).__name__ in whole]
    layers += [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    return sum(parameter.numel() for parameter in model.parameters()), max(sizes)


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

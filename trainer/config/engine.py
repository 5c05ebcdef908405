"""The `engine:` section: DeepSpeed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from transpooler.common import UserError, at_least, one_of, positive

OFFLOAD = ("none", "cpu", "nvme")
LOWEST_STAGE = {"offload_optimizer": {"cpu": 1, "nvme": 3}, "offload_parameters": {"cpu": 3, "nvme": 3}}
"""The ZeRO stage from which on DeepSpeed can offload to a place."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed: memory, precision and communication."""

    zero_stage: int = one_of((0, 1, 2, 3), 1, "DeepSpeed knows 0, 1, 2 and 3")
    """What ZeRO shards over the ranks: 0 nothing, 1 optimizer states, 2 + gradients, 3 + parameters."""
    precision: str = one_of(("fp32", "bf16", "fp16"), "fp32")
    """fp32, bf16 (float32 master weights) or fp16 (dynamic loss scaling; CUDA only)."""
    micro_batch_size: int = at_least(1, 1)
    """Documents per rank in one forward pass; gradients accumulate up to data.batch_size."""
    offload_optimizer: str = one_of(OFFLOAD, "none")
    """Where optimizer states live: none (with the weights), cpu or nvme (ZeRO 1 to 3; nvme: 3). cpu compiles
    DeepSpeed's CPU Adam at first use."""
    offload_parameters: str = one_of(OFFLOAD, "none")
    """Where the weights of ZeRO 3 live between uses: none, cpu or nvme."""
    nvme_path: str | None = None
    """Folder on a fast local disk for what is offloaded to nvme."""
    activation_checkpointing: str = one_of(("none", "torch", "deepspeed", "chunks"), "none")
    """Compute again in the backward pass instead of keeping activations: none; torch or deepspeed (which alone can keep
    what it saves in the CPU's memory), a layer at a time; or chunks, for very long documents: all encoder layers
    between two poolings, 16,384 tokens at a time."""
    checkpoint_in_cpu: bool = False
    """activation_checkpointing=deepspeed: layer inputs wait for the backward pass in the CPU's memory (without a
    GPU they are there anyway)."""
    context_parallel_size: int = at_least(1, 1)
    """Ranks that share each document (context parallelism): every one reads whole blocks of it, so that activations
    before the last pooling fall to a part. Divides the number of ranks; the others are data parallel."""
    compile: bool = False
    """torch.compile the model (ZeRO 0 to 2, no activation checkpointing): slow first steps, faster ones after."""
    peak_tflops: float | None = positive(None)
    """What one device can do in this precision, in 10^12 floating-point operations a second, for `mfu` in the metrics;
    null looks well-known GPUs up and leaves mfu out on others."""
    collective_timeout_s: float = positive(1800.0)
    """A collective that takes longer than this ends the job. Above guards.watchdog_timeout_s, so that the watchdog
    can still say which rank hangs."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Any fragment of a DeepSpeed configuration, merged last; keys that we set ourselves are errors."""

    @property
    def shards_states(self) -> bool:
        """Each rank holds a part of the optimizer states, and DeepSpeed's ZeRO runs the optimizer."""
        return self.zero_stage >= 1

    @property
    def shards_gradients(self) -> bool:
        """Each rank holds a part of the gradients."""
        return self.zero_stage >= 2

    @property
    def shards_weights(self) -> bool:
        """Each rank holds a part of the weights."""
        return self.zero_stage == 3

    @property
    def offloads_optimizer(self) -> bool:
        """Optimizer states live outside the device."""
        return self.offload_optimizer != "none"

    def gathers_in_forward(self, world_size: int) -> bool:
        """Every forward pass is a collective, which all ranks must run equally often."""
        return self.shards_weights and world_size > 1

    def cuts(self, world_size: int) -> str:
        """When documents go through the layers in pieces: see model.layers.streaming.cutting."""
        if self.activation_checkpointing == "chunks":
            return "always"
        return "never" if self.gathers_in_forward(world_size) else "without_gradients"

    def data_parallel_size(self, world_size: int) -> int:
        """Groups of ranks that read different documents; UserError where the ranks make no whole groups."""
        if world_size % self.context_parallel_size:
            size = self.context_parallel_size
            raise UserError(
                f"engine.context_parallel_size is {size}, but the job has {world_size} ranks, which make no groups of "
                f"{size}; use a divisor of {world_size}, or start a multiple of {size} ranks"
            )
        return world_size // self.context_parallel_size

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        if self.precision != "fp32" and self.zero_stage == 0:
            yield "zero_stage", f"is 0, where DeepSpeed keeps no float32 weights beside {self.precision}; use 1"
        for name, lowest in LOWEST_STAGE.items():
            place = getattr(self, name)
            if self.zero_stage < (needed := lowest.get(place, 0)):
                yield name, f"is {place!r}, which needs engine.zero_stage={needed}, not {self.zero_stage}"
            if place == "nvme" and self.nvme_path is None:
                yield "nvme_path", f"is null, but engine.{name} is 'nvme'; name a folder on a local disk"
        if self.compile and self.shards_weights:
            yield "compile", "is true, but the weights of engine.zero_stage=3 come and go between layers; use 0 to 2"
        if self.compile and self.activation_checkpointing != "none":
            message = "is true, but torch cannot compile checkpointed layers for changing lengths; use one of the two"
            yield "compile", message
        if self.compile and self.context_parallel_size > 1:
            yield "compile", "is true, but what engine.context_parallel_size ranks exchange is not compiled; use one"
        if self.activation_checkpointing == "chunks" and self.shards_weights:
            message = "is 'chunks', but ranks fetch the weights of engine.zero_stage=3 together; use 0 to 2, or torch"
            yield "activation_checkpointing", message
        if self.checkpoint_in_cpu and self.activation_checkpointing != "deepspeed":
            yield "checkpoint_in_cpu", "is true, which needs engine.activation_checkpointing=deepspeed"

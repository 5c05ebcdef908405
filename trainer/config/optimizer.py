"""Settings of the optimizer and its learning-rate schedule."""

from collections.abc import Iterator
from dataclasses import dataclass

OPTIMIZERS = ("adamw", "fused_adamw", "muon")
SCHEDULES = ("polynomial", "cosine", "wsd", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, its parameter groups and its learning-rate schedule."""

    name: str = "adamw"
    """adamw (torch's), fused_adamw (DeepSpeed's kernel; compiled at first use) or muon (DeepSpeed's: matrices
    by Muon, the rest by AdamW; without clipping). The last two need ZeRO 1 to 3. With
    engine.offload_optimizer=cpu, adamw is DeepSpeed's CPU kernel."""
    learning_rate: float = 5e-4
    """Peak learning rate (of AdamW's part, where Muon is chosen)."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled weight decay; norms, biases and embeddings have none."""
    scorer_learning_rate_scale: float = 1.0
    """Learning rate of the poolers' scorers, as a multiple of learning_rate."""
    muon_learning_rate: float = 0.02
    """muon: peak learning rate of the matrices; it follows the same schedule."""
    muon_momentum: float = 0.95
    schedule: str = "polynomial"
    """What follows the warm-up: polynomial (linear by default), cosine, wsd (stays at the peak, then falls linearly in
    the last decay_steps) or constant."""
    warmup_steps: int = 5000
    """Steps of linear warm-up from 0."""
    decay_steps: int = 30_000
    """wsd: length of the final fall, in steps."""
    polynomial_power: float = 1.0
    final_learning_rate_ratio: float = 0.0
    """Learning rate at the last step, as a share of the peak."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 turns clipping off."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.name not in OPTIMIZERS:
            yield "name", f"is {self.name!r}; choose one of {', '.join(OPTIMIZERS)}"
        if self.schedule not in SCHEDULES:
            yield "schedule", f"is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}"
        for name in ("learning_rate", "muon_learning_rate"):
            if getattr(self, name) <= 0:
                yield name, f"is {getattr(self, name)}; must be positive"
        for name in ("weight_decay", "warmup_steps", "max_grad_norm", "scorer_learning_rate_scale"):
            if getattr(self, name) < 0:
                yield name, f"is {getattr(self, name)}; must not be negative"
        if not 0 <= self.final_learning_rate_ratio <= 1:
            yield "final_learning_rate_ratio", f"is {self.final_learning_rate_ratio}; must lie in [0, 1]"
        if not 0 <= self.muon_momentum < 1:
            yield "muon_momentum", f"is {self.muon_momentum}; must lie in [0, 1)"
        if self.decay_steps < 1:
            yield "decay_steps", f"is {self.decay_steps}; must be at least 1"

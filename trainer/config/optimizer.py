"""The `optimizer:` section: the optimizer and its learning-rate schedule."""

from collections.abc import Iterator
from dataclasses import dataclass

from transpooler.common import at_least, between, one_of, positive


@dataclass(frozen=True, kw_only=True)
class OptimizerTraits:
    """What the rest of a configuration has to respect about an optimizer."""

    needs_zero: bool = True
    """Works only inside ZeRO, so from stage 1 on."""
    offloads: bool = False
    """Works with engine.offload_optimizer."""
    whole_matrices: bool = False
    """Updates whole matrices: ZeRO must not cut their gradients, and would clip the finished updates."""


OPTIMIZERS = {
    "adamw": OptimizerTraits(needs_zero=False, offloads=True),
    "fused_adamw": OptimizerTraits(),
    "muon": OptimizerTraits(whole_matrices=True),
}
"""Every optimizer by name. How it is built: trainer/engine/optimizer.py."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Settings of the parameters whose names match a pattern."""

    match: str = ""
    """Pattern of names, such as 'model.encoder.*'; * stands for anything, dots included (Python's fnmatch)."""
    learning_rate: float | None = at_least(0, None)
    """Peak learning rate in place of optimizer.learning_rate; what is a multiple of that, such as
    scorer_learning_rate_scale or the ratio of Muon's to it, becomes a multiple of this. null = the same."""
    weight_decay: float | None = at_least(0, None)
    """In place of optimizer.weight_decay; norms, biases and embeddings have none here, too. null = the same."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """A group must say whom it means and what for."""
        if not self.match:
            yield "match", "is empty; give a pattern of parameters' names, such as 'model.encoder.*'"
        if self.learning_rate is None and self.weight_decay is None:
            yield "match", f"is {self.match!r}, but the group sets nothing; give learning_rate or weight_decay"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, its parameter groups and its learning-rate schedule."""

    name: str = one_of(OPTIMIZERS, "adamw")
    """adamw (torch's), fused_adamw (DeepSpeed's kernel; compiled at first use) or muon (DeepSpeed's: matrices
    by Muon, the rest by AdamW; without clipping). The last two need ZeRO 1 to 3. With
    engine.offload_optimizer=cpu, adamw is DeepSpeed's CPU kernel."""
    learning_rate: float = positive(5e-4)
    """Peak learning rate (of AdamW's part, where Muon is chosen)."""
    betas: tuple[float, float] = between(0, 1, (0.9, 0.999), exclude=(1,))
    eps: float = at_least(0, 1e-8)
    weight_decay: float = at_least(0, 0.1)
    """Decoupled weight decay; norms, biases and embeddings have none."""
    scorer_learning_rate_scale: float = at_least(0, 1.0)
    """Learning rate of the poolers' scorers, as a multiple of learning_rate, or of their group's."""
    groups: tuple[GroupConfig, ...] = ()
    """Parameters with a learning rate or weight decay of their own; the first group that matches a name decides."""
    muon_learning_rate: float = positive(0.02)
    """muon: peak learning rate of the matrices; it follows the same schedule."""
    muon_momentum: float = between(0, 1, 0.95, exclude=(1,))
    schedule: str = one_of(("polynomial", "cosine", "wsd", "constant"), "polynomial")
    """What follows the warm-up: polynomial (linear by default), cosine, wsd (stays at the peak, then falls linearly in
    the last decay_steps) or constant."""
    warmup_steps: int = at_least(0, 5000)
    """Steps of linear warm-up from 0."""
    decay_steps: int = at_least(1, 30_000)
    """wsd: length of the final fall, in steps."""
    polynomial_power: float = at_least(0, 1.0)
    final_learning_rate_ratio: float = between(0, 1, 0.0)
    """Learning rate at the last step, as a share of the peak."""
    max_grad_norm: float = at_least(0, 1.0)
    """Gradients are clipped to this global norm; 0 turns clipping off."""

    @property
    def traits(self) -> OptimizerTraits:
        """What the chosen optimizer needs."""
        return OPTIMIZERS[self.name]

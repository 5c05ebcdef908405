"""What a run remembers beside weights and optimizer: a few numbers, small enough for JSON."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class TrainState:
    """Everything that resumes and is not a tensor. The loader's position is `step`: order is a pure function of it."""

    step: int = 0
    """Optimizer steps done (skipped ones included)."""
    stage: int = 0
    """Number of the stage (`train.stages`) that the optimizer belongs to."""
    skipped_steps: int = 0
    """Steps without an update, because the loss or a gradient was not finite."""
    skipped_in_a_row: int = 0
    source_tokens: int = 0
    """Real source tokens read so far, over all ranks."""
    target_tokens: int = 0
    """Target tokens trained on so far, over all ranks."""
    damaged_documents: int = 0
    """Times that a document was left out, because it could not be read."""
    ledger: str = ""
    """SHA-256 chained over the keys of every global batch: equal ledgers, equal data in equal order."""
    window_loss: float = 0.0
    """Summed loss since the last line of metrics, so that a resumed run writes the lines of an undisturbed one."""
    window_target_tokens: int = 0
    best_value: float | None = None
    """The best evaluation's train.best_metric (the loss with its sign turned: higher is better)."""
    best_step: int | None = None
    evaluations_without_gain: int = 0
    """Evaluations since the best one."""
    evaluation_pending: bool = False
    """The evaluation of this step is due and not done: a run stopped during it starts with it."""
    loss_spikes: int = 0
    loss_mean: float = 0.0
    """Moving mean of the loss per target token; with its variance, what a spike is measured by."""
    loss_variance: float = 0.0
    losses_seen: int = 0

    def begin_stage(self, number: int) -> None:
        """Enter a stage, whose evaluations are counted anew."""
        self.stage, self.evaluations_without_gain = number, 0

    def record(self, keys: Sequence[str]) -> None:
        """Chain the documents of one global batch into the ledger."""
        self.ledger = hashlib.sha256("\n".join([self.ledger, *keys]).encode()).hexdigest()

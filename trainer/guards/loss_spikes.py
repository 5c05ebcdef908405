"""What counts as a loss spike: a pure function of the run's state, so that a resumed run decides alike.

The moving mean and variance cover about the last hundred losses that were trained on. All ranks hold the same global
loss and hence the same state, so they agree without talking.
"""

import math

from transpooler.trainer.state import TrainState

MIN_HISTORY = 50
"""No loss counts as a spike before this many were seen, because at the start losses fall fast."""
WEIGHT_OF_ONE = 0.01
MIN_DEVIATION_SHARE = 0.01
"""The standard deviation is taken as at least this share of the mean: on a flat curve, ripples must not be spikes."""


def is_spike(state: TrainState, loss: float, threshold: float) -> bool:
    """Whether a loss lies more than `threshold` standard deviations above the moving mean; never, if threshold is 0."""
    if not threshold or state.losses_seen < MIN_HISTORY:
        return False
    deviation = max(math.sqrt(state.loss_variance), MIN_DEVIATION_SHARE * abs(state.loss_mean))
    return loss > state.loss_mean + threshold * deviation


def note_loss(state: TrainState, loss: float) -> None:
    """Move mean and variance towards a loss that was trained on."""
    weight = max(WEIGHT_OF_ONE, 1 / (state.losses_seen + 1))
    distance = loss - state.loss_mean
    state.loss_mean += weight * distance
    state.loss_variance = (1 - weight) * (state.loss_variance + weight * distance * distance)
    state.losses_seen += 1

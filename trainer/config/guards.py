"""What keeps a run from hanging and from bad batches."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GuardsConfig:
    """The watchdog and the look-out for loss spikes."""

    watchdog_timeout_s: float = 1200.0
    """When no step ends for so long, every rank writes its stacks to RUN/stacks and the job ends with code 70; 0 = no
    watchdog. Keep it below engine.collective_timeout_s, and above the longest step, checkpoint or evaluation batch."""
    silent_rank_s: float = 30.0
    """The same when a rank gives no sign of life for so long (killed, stopped, its host gone)."""
    spike_threshold: float = 6.0
    """A loss so many standard deviations above its moving mean is reported as a spike; 0 = not looked for."""
    skip_spikes: bool = False
    """Leave the update of such a step out."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("watchdog_timeout_s", "spike_threshold"):
            if getattr(self, name) < 0:
                yield name, f"is {getattr(self, name)}; must not be negative"
        if self.silent_rank_s <= 0:
            yield "silent_rank_s", f"is {self.silent_rank_s}; must be positive"
        if self.skip_spikes and not self.spike_threshold:
            yield "skip_spikes", "is true, which needs guards.spike_threshold above 0"

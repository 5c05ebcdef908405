"""The `guards:` section: what keeps a run from hanging and from bad batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from transpooler.common.fields import at_least, positive


@dataclass(frozen=True, kw_only=True)
class GuardsConfig:
    """The watchdog and the detection of loss spikes."""

    watchdog_timeout_s: float = at_least(0, 1200.0)
    """If no step ends for this long, every rank writes its stacks to RUN/stacks and the job ends with code 70; 0 = no
    watchdog. Below engine.collective_timeout_s, and above the longest step, checkpoint or evaluation batch."""
    silent_rank_s: float = positive(30.0)
    """The job also ends when a rank gives no sign of life for this long (killed, stopped, its host gone)."""
    spike_threshold: float = at_least(0, 6.0)
    """A loss this many standard deviations above its moving mean is reported as a spike; 0 = never."""
    skip_spikes: bool = False
    """Make no update in a step whose loss is a spike."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        if self.skip_spikes and not self.spike_threshold:
            yield "skip_spikes", "is true, which needs guards.spike_threshold above 0"

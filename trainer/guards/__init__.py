"""What ends a run or a step early: stop requests, hung ranks, loss spikes."""

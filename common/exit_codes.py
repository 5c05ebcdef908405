"""What a process of ours ends with; launchers and schedulers act on it."""

DONE = 0
USER_ERROR = 2
STALLED = 70
"""EX_SOFTWARE of sysexits.h: the job hung or lost a rank. Its checkpoints are fine; start it again."""
PREEMPTED = 75
"""Temporary failure (sysexits.h): the run is saved and continues when started again."""
INTERRUPTED = 130

"""Libraries that move: which versions the tests ran with, and what of each we rely on that it does not promise."""

from importlib import metadata
from typing import NamedTuple

from transpooler.common.errors import UserError


class Tested(NamedTuple):
    """The versions of a library between which everything was tried (`make test-versions`): major.minor, or a patch."""

    oldest: str
    newest: str
    relies_on: str
    """Contracts that are not public, and would break silently or loudly."""
    refuses_newer: bool = False
    """Whether results could be wrong without a word above the newest."""


TESTED = {
    "transformers": Tested(
        "5.17",
        "5.24",
        "generate's names for the cache, _expand_inputs_for_generation, _reorder_cache, GradientCheckpointingLayer, "
        "initialization.no_init_weights, create_causal_mask, the rule by which saved code is found",
        refuses_newer=True,
    ),
    "torch": Tested("2.11", "2.14", "fake kernels of custom operators, torch.compiler.set_stance"),
    "deepspeed": Tested("0.19.8", "0.19", "names of checkpoint files and keys, zero_to_fp32, the estimates of memory"),
    "datasets": Tested("5.0", "5.2", "none: load_from_disk and iteration"),
    "webdataset": Tested("1.0", "1.0", "none: TarWriter and its naming"),
}
"""By the name of the distribution; the bounds in pyproject.toml agree (a test says so). DeepSpeed before 0.19.8 cannot
checkpoint activations on a CPU: it opens a stream there, which no CPU has."""


def check_version(name: str) -> str | None:
    """A warning where the installed version is above the newest tested one, None where there is nothing to say.

    UserError where it is older than the oldest, or newer and results could be wrong.
    """
    installed, tested = metadata.version(name), TESTED[name]
    if _older(installed, tested.oldest):
        raise UserError(f"{name} {installed} is older than {tested.oldest}, the oldest that works; upgrade it")
    if not _older(tested.newest, installed):
        return None
    if tested.refuses_newer:
        raise UserError(
            f"{name} {installed} is newer than {tested.newest}, the newest tested version, and may change results "
            f"silently; install {name}<={tested.newest}.*, or a newer transpooler"
        )
    return f"{name} {installed} is newer than {tested.newest}, the newest that was tested here"


def _older(version: str, than: str) -> bool:
    """Whether one version precedes another, by as many numbers as both name: 5.24.3 and 5.24 are level."""
    numbers = [[int(part) for part in name.partition("+")[0].split(".") if part.isdigit()] for name in (version, than)]
    parts = min(map(len, numbers))
    return numbers[0][:parts] < numbers[1][:parts]

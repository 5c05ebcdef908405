"""Parameters by name: what patterns of names mean, which parameters are frozen.

A tied parameter has all its names. Patterns are Python's fnmatch over whole names; * crosses dots.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from transpooler.common import UserError, list_some
from transpooler.trainer.config.stages import Stage

_WRAPPED = ".base_layer."
"""What `peft` puts into the names of weights beside which factors are trained."""


def names_of_parameters(model: nn.Module) -> dict[nn.Parameter, tuple[str, ...]]:
    """Every parameter once, in the model's order, with all its names."""
    names: dict[nn.Parameter, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter] = (*names.get(parameter, ()), name)
    return names


def plain_name(name: str) -> str:
    """A parameter's name as the model has it without LoRA, or that of a factor: x.lora_A.weight."""
    return name.replace(_WRAPPED, ".").replace(".default.", ".") if ".lora_" in name or _WRAPPED in name else name


def is_match(names: Iterable[str], pattern: str) -> bool:
    """Whether the pattern means the parameter with these names."""
    return any(fnmatchcase(plain_name(name), pattern) for name in names)


def freeze(model: nn.Module, stage: Stage) -> None:
    """Let the stage train what it trains, and nothing else."""
    for parameter, names in names_of_parameters(model).items():
        parameter.requires_grad_(not _is_frozen(names, stage))


def check_patterns(model: nn.Module, stages: Sequence[Stage], patterns: Mapping[str, Sequence[str]]) -> None:
    """UserError with one line for each pattern that means no parameter, and each stage that would train none.

    `patterns` by the setting that holds them.
    """
    names = list(names_of_parameters(model).values())
    known = [plain_name(name) for each in names for name in each]
    problems = [
        f"{key}: no parameter's name matches {pattern!r}; near to it: {list_some(_near(pattern, known))}"
        for key, each in patterns.items()
        for pattern in each
        if not is_match(known, pattern)
    ]
    problems += [
        f"{stage.key}.freeze is {list(stage.freeze)}, which leaves no parameter to train; take a pattern away"
        for stage in stages
        if all(_is_frozen(each, stage) for each in names)
    ]
    if problems:
        raise UserError(*problems)


def _is_frozen(names: Sequence[str], stage: Stage) -> bool:
    """Weights beside which LoRA's factors are trained always are; a factor, where a pattern names `lora_`."""
    if any(_WRAPPED in name for name in names):
        return True
    factor = any(".lora_" in name for name in names)
    return any(is_match(names, pattern) for pattern in stage.freeze if "lora_" in pattern or not factor)


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Names, or beginnings of names followed by *, that look like the pattern."""
    choices = list(dict.fromkeys(choice for name in names for choice in _choices(name)))
    return difflib.get_close_matches(pattern, choices, n=3, cutoff=0.0)


def _choices(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (f"{'.'.join(parts[:end])}.*" for end in range(1, len(parts)))
    yield name

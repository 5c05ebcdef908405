"""Parameters by name: what patterns of names mean, which parameters are frozen.

A tied parameter has all its names. Patterns are Python's fnmatch over whole names; * crosses dots.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from transpooler.common import UserError, list_some
from transpooler.trainer.config.stages import Stage


def names_of_parameters(model: nn.Module) -> dict[nn.Parameter, tuple[str, ...]]:
    """Every parameter once, in the model's order, with all its names."""
    names: dict[nn.Parameter, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter] = (*names.get(parameter, ()), name)
    return names


def trained_names(model: nn.Module) -> frozenset[str]:
    """All names of the parameters that are trained."""
    return frozenset(
        name for parameter, names in names_of_parameters(model).items() if parameter.requires_grad for name in names
    )


def is_match(names: Iterable[str], pattern: str) -> bool:
    """Whether the pattern means the parameter with these names."""
    return any(fnmatchcase(name, pattern) for name in names)


def freeze(model: nn.Module, stage: Stage) -> None:
    """Let the stage train what it trains, and nothing else."""
    for parameter, names in names_of_parameters(model).items():
        parameter.requires_grad_(not _is_frozen(names, stage))


def check_patterns(model: nn.Module, stages: Sequence[Stage], patterns: Mapping[str, Sequence[str]]) -> None:
    """UserError with one line for each pattern that means no parameter, and each stage that would train none.

    `patterns` by the setting that holds them.
    """
    names = list(names_of_parameters(model).values())
    known = [name for each in names for name in each]
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
        raise UserError("\n".join(problems))


def _is_frozen(names: Iterable[str], stage: Stage) -> bool:
    return any(is_match(names, pattern) for pattern in stage.freeze)


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Names, or beginnings of names followed by *, that look like the pattern."""
    choices = list(dict.fromkeys(choice for name in names for choice in _choices(name)))
    return difflib.get_close_matches(pattern, choices, n=3, cutoff=0.0)


def _choices(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (f"{'.'.join(parts[:end])}.*" for end in range(1, len(parts)))
    yield name

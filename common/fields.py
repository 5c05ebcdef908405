"""Rules that stand at a setting's field: `steps: int = at_least(1, 300_000)`. The configuration loader checks them all.

A value of None means that an optional setting is not set, and passes. Floats must be finite whatever the rule.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_RULE = "rule"

Rule = Callable[[Any], str | None]
"""What is wrong with a value, such as 'must be at least 1'; None for a good one."""


def at_least(minimum: float, default: Any) -> Any:
    """A field whose number is `minimum` or more."""
    return _field(default, lambda value: None if value >= minimum else f"must be at least {minimum:g}")


def above(limit: float, default: Any) -> Any:
    """A field whose number is more than `limit`."""
    return _field(default, lambda value: None if value > limit else f"must be above {limit:g}")


def between(low: float, high: float, default: Any) -> Any:
    """A field whose number lies in [low, high]."""
    return _field(default, lambda value: None if low <= value <= high else f"must lie between {low:g} and {high:g}")


def one_of(choices: Sequence[Any], default: Any) -> Any:
    """A field whose value is one of `choices`."""
    names = ", ".join(map(str, choices))
    return _field(default, lambda value: None if value in choices else f"choose one of {names}")


def field_problems(section: Any) -> Iterator[tuple[str, str]]:
    """(field, message) for each field of a dataclass that breaks its rule or is no finite number."""
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            yield entry.name, f"is {value}; must be a finite number"
        elif (rule := entry.metadata.get(_RULE)) is not None and (problem := rule(value)) is not None:
            yield entry.name, f"is {value!r}; {problem}"


def _field(default: Any, rule: Rule) -> Any:
    return dataclasses.field(default=default, metadata={_RULE: rule})

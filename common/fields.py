"""Rules that stand at a setting's field: `steps: int = at_least(1, 300_000)`. The configuration loader checks them all.

A field whose type allows None may be left unset: None passes. A rule for a tuple holds for each of its items, and
numbers must be finite and, unless it says otherwise, at most LARGEST in size.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

LARGEST = 2**31 - 1
"""Of any number: what fits everywhere, such as 32-bit indices and the operating system's time-outs (68 years in s)."""
_RULE, _LARGEST = "rule", "largest"

Rule = Callable[[Any], str | None]
"""What is wrong with a value, such as 'must be at least 1'; None for a good one."""


def at_least(minimum: float, default: Any, why: str = "", largest: float = LARGEST) -> Any:
    """A field whose number is `minimum` or more; `why` follows the limit in the message, in brackets."""
    limit = f"must be at least {minimum}{f' ({why})' if why else ''}" if minimum or why else "must not be negative"
    return _field(default, lambda value: None if value >= minimum else limit, largest)


def positive(default: Any) -> Any:
    """A field whose number is above 0."""
    return _field(default, lambda value: None if value > 0 else "must be positive")


def between(low: float, high: float, default: Any, exclude: Sequence[float] = ()) -> Any:
    """A field whose number lies in [low, high]; `exclude` names the ends that do not belong to it."""
    interval = f"{'(' if low in exclude else '['}{low}, {high}{')' if high in exclude else ']'}"
    return _field(
        default, lambda value: None if low <= value <= high and value not in exclude else f"must lie in {interval}"
    )


def one_of(choices: Collection[Any], default: Any, message: str = "") -> Any:
    """A field whose value is one of `choices`, which may grow later; `message` says so in other words."""
    return _field(
        default, lambda value: None if value in choices else message or f"choose one of {', '.join(map(str, choices))}"
    )


def all_problems(section: Any) -> Iterator[tuple[str, str]]:
    """(key, message) for all that is wrong with a dataclass and those inside it; keys are paths such as `a.b[0].c`.

    First what the rules at the fields find, then what each dataclass's own `problems()` yields about other keys.
    """
    sections = list(_sections(section, ""))
    broken = [(f"{prefix}{key}", message) for prefix, each in sections for key, message in field_problems(each)]
    yield from broken
    reported = dict(broken)
    for prefix, each in sections:
        if hasattr(each, "problems"):
            found = ((f"{prefix}{key}", message) for key, message in each.problems())
            yield from ((key, message) for key, message in found if key not in reported)


def field_problems(section: Any) -> Iterator[tuple[str, str]]:
    """(field, message) for each field of a dataclass that breaks its rule or holds a number that is not finite."""
    for entry in dataclasses.fields(section):
        value, rule = getattr(section, entry.name), entry.metadata.get(_RULE)
        for item in value if isinstance(value, tuple) else (value,):
            if item is None:
                continue
            if isinstance(item, float) and not math.isfinite(item):
                yield entry.name, f"is {item}; must be a finite number"
            elif _is_above(item, entry.metadata.get(_LARGEST, LARGEST)):
                yield entry.name, f"is {item}; must not be above {LARGEST:,} in size"
            elif rule is not None and (problem := rule(item)) is not None:
                optional = ", or null" if type(None) in typing.get_args(entry.type) else ""
                yield entry.name, f"is {value!r}; {problem}{optional}"


def _field(default: Any, rule: Rule, largest: float = LARGEST) -> Any:
    return dataclasses.field(default=default, metadata={_RULE: rule, _LARGEST: largest})


def _is_above(value: Any, largest: float) -> bool:
    return isinstance(value, int | float) and abs(value) > largest


def _sections(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(prefix of its keys, dataclass) for the dataclasses in `value`, items of tuples included; the outermost last."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _sections(item, f"{prefix.removesuffix('.')}[{index}].")
    elif dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            yield from _sections(getattr(value, entry.name), f"{prefix}{entry.name}.")
        yield prefix, value

"""Values of a wrong type: what pydantic finds against the dataclasses, as one line for each key, in words of YAML."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list"}
_YAML = {"None": "null", "True": "true", "False": "false"}


def type_problems(errors: Iterable[Any], schema: Any, prefix: str = "") -> Iterator[str]:
    """One line for each key that pydantic's `errors()` about values of `schema` name; `prefix` is their section."""
    told: set[str] = set()
    for error in errors:
        key, annotation = _resolve(error["loc"], schema, prefix)
        if key not in told:  # there is an error for each type that a value may have
            told.add(key)
            yield f"{key} {_describe(error, annotation)}"


def misused_switches(value: Any, schema: Any, key: str = "") -> Iterator[str]:
    """One line for each true or false that stands for a number; pydantic would take it for 1 or 0."""
    if isinstance(value, bool) and {int, float} & {*_members(schema)} and bool not in _members(schema):
        yield f"{key} is {_show(value)}; must be {_wanted(schema)}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from misused_switches(item, _item_of(schema, index), f"{key}[{index}]")
    elif isinstance(value, dict) and (element := dataclass_of(schema)) is not None:
        hints = typing.get_type_hints(element)
        for name, item in value.items():
            yield from misused_switches(item, hints.get(name), f"{key}.{name}".removeprefix("."))


def dataclass_of(annotation: Any) -> Any:
    """The dataclass inside an annotation such as `X`, `X | None` or `tuple[X, ...]`, or None."""
    if dataclasses.is_dataclass(annotation):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := dataclass_of(inner))), None)


def _resolve(loc: Iterable[str | int], schema: Any, key: str) -> tuple[str, Any]:
    """The path of a setting, such as `a.b[0].c`, and its type, from where pydantic has found an error."""
    for part in loc:
        if isinstance(part, int):
            key, schema = f"{key}[{part}]", _item_of(schema, part)
        elif (element := dataclass_of(schema)) is not None and part in (hints := typing.get_type_hints(element)):
            key, schema = f"{key}.{part}".removeprefix("."), hints[part]
        elif typing.get_origin(schema) is dict:
            key, schema = f"{key}.{part}", typing.get_args(schema)[1]
        else:  # not a key, but which of a value's types it was about
            break
    return key, schema


def _describe(error: Any, annotation: Any) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "too_long":
        return f"has {len(error['input'])} items; must have {error['ctx']['max_length']}"
    is_scalar = isinstance(error["input"], bool | int | float)
    remedy = "; put it into quotes" if is_scalar and str in _members(annotation) else ""
    return f"is {_show(error['input'])}; must be {_wanted(annotation)}{remedy}"


def _wanted(annotation: Any) -> str:
    """A type in words."""
    members = [*_members(annotation)]
    words = [
        _WORDS.get(typing.get_origin(each) or each, "a mapping (key: value)")
        for each in members
        if each is not type(None)
    ]
    return " or ".join(words) + (", or null" if type(None) in members else "")


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the type alone."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if is_union else (annotation,)


def _item_of(annotation: Any, index: int) -> Any:
    """The type of an item of a list."""
    lists = [each for each in _members(annotation) if typing.get_origin(each) is tuple]
    items = typing.get_args(lists[0]) if lists else ()
    if len(items) == 2 and items[1] is Ellipsis:
        return items[0]
    return items[index] if index < len(items) else None


def _show(value: Any) -> str:
    return _YAML.get(repr(value), repr(value))

"""Metrics of a user's own: functions `metric(document: str, reference: str, summary: str) -> float` by their names.

They are imported, and tried on one document, before anything is generated. Nothing here needs torch.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from transpooler.common import UserError

KEY = "evaluation.metrics"


class OwnMetric(NamedTuple):
    """A function and the name under which it was asked for."""

    name: str
    function: Callable[[str, str, str], float]

    def measure(self, document: str, reference: str, summary: str, where: str) -> float:
        """Its value, finite; UserError naming the document `where` if it has none."""
        try:
            value = self.function(document, reference, summary)
        except Exception as error:  # it is not ours, and may raise anything
            raise UserError(f"{KEY}: {self.name} failed on document {where}: {_describe(error)}") from error
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            shown = _first_line(repr(value))
            raise UserError(f"{KEY}: {self.name} returned {shown} for document {where}; it must return a finite number")
        return number


def load_metrics(names: Sequence[str]) -> list[OwnMetric]:
    """Import the functions of these names, `module:function`; UserError for what cannot be imported or called."""
    return [OwnMetric(name, _load(name)) for name in names]


def measure_all(
    metrics: Sequence[OwnMetric], document: str, reference: str, summary: str, where: str
) -> dict[str, float]:
    """The value of each metric, by name; UserError as `OwnMetric.measure`."""
    return {metric.name: metric.measure(document, reference, summary, where) for metric in metrics}


def _load(name: str) -> Callable[[str, str, str], float]:
    module, _, function = name.partition(":")
    try:
        found = import_module(module)
    except Exception as error:  # a module may raise anything while it is imported
        remedy = "install it, or put its folder on Python's path"
        raise UserError(f"{KEY}: {name}: cannot import {module}: {_describe(error)}; {remedy}") from error
    metric = getattr(found, function, None)
    if metric is None:
        near = difflib.get_close_matches(function, [key for key, value in vars(found).items() if callable(value)], n=1)
        raise UserError(f"{KEY}: {name}: {module} has no {function}{f'; did you mean {near[0]}?' if near else ''}")
    if not callable(metric):
        raise UserError(f"{KEY}: {name} is {type(metric).__name__}, not a function of document, reference and summary")
    return metric


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(str(error))}"


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")[:200]

"""Rules at the fields of settings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from transpooler.common import all_problems, at_least, between, one_of, positive


@dataclass(frozen=True, kw_only=True)
class Item:
    weight: float = positive(1.0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = at_least(1, 3)
    delay_s: float = at_least(0, 1.0)
    tokens: int = at_least(2, 9, "one token and </s>")
    limit: int | None = at_least(1, None)
    share: float = between(0, 1, 0.5, exclude=(1,))
    betas: tuple[float, float] = between(0, 1, (0.5, 1.0))
    kind: str = one_of(("a", "b"), "a")
    name: str = "x"
    penalty: float = 1.0
    items: tuple[Item, ...] = field(default_factory=tuple)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind != "a":
            yield "kind", "is not a"
        if self.name != "x":
            yield "name", "is not x"


def test_good_values_pass():
    assert list(all_problems(Settings())) == []
    assert list(all_problems(Settings(steps=1, delay_s=0, share=0, limit=1, items=(Item(),)))) == []


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"steps": 0}, "steps", "is 0; must be at least 1"),
        ({"delay_s": -1.5}, "delay_s", "is -1.5; must not be negative"),
        ({"tokens": 1}, "tokens", "is 1; must be at least 2 (one token and </s>)"),
        ({"limit": 0}, "limit", "is 0; must be at least 1, or null"),
        ({"share": 1.0}, "share", "is 1.0; must lie in [0, 1)"),
        ({"betas": (0.5, 2.0)}, "betas", "is (0.5, 2.0); must lie in [0, 1]"),
        ({"kind": "c"}, "kind", "is 'c'; choose one of a, b"),
        ({"kind": "b"}, "kind", "is not a"),
        ({"penalty": math.nan}, "penalty", "is nan; must be a finite number"),
        ({"delay_s": math.inf}, "delay_s", "is inf; must be a finite number"),
        ({"items": (Item(), Item(weight=0.0))}, "items[1].weight", "is 0.0; must be positive"),
    ],
)
def test_what_is_wrong_is_said_once_with_its_path(values, key, message):
    assert list(all_problems(Settings(**values))) == [(key, message)]


def test_all_problems_are_found():
    found = dict(all_problems(Settings(steps=0, kind="c", name="y")))
    assert list(found) == ["steps", "kind", "name"]

"""A value of a wrong type is one line that begins with the key, wherever the key is."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.model.architecture import Architecture
from transpooler.trainer.config import Config, load_config


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.steps=1.5", "train.steps is 1.5; must be a whole number"),
        ("train.steps=null", "train.steps is null; must be a whole number"),
        ("train.steps=true", "train.steps is true; must be a whole number"),
        ("train=3", "train is 3; must be a mapping (key: value)"),
        ("train.max_time=[1]", "train.max_time is [1]; must be a text or a number, or null"),
        ("train.steps=${data.absent}", "train.steps: Interpolation key 'data.absent' not found"),
        ("optimizer.betas=[0.9]", "optimizer.betas[1] is missing"),
        ("optimizer.betas=[0.9, true]", "optimizer.betas[1] is true; must be a number"),
        ("optimizer.betas=[0.9, 0.9, 0.9]", "optimizer.betas has 3 items; must have 2"),
        ("prepare.sources.train=a.jsonl", "prepare.sources.train is 'a.jsonl'; must be a list"),
        ("prepare.sources.train=[a, 1]", "prepare.sources.train[1] is 1; must be a text; put it into quotes"),
        ("data.mixture=[{name: a}]", "data.mixture[0].shards is missing"),
        ("data.mixture=[{name: a, shards: b, weight: x}]", "data.mixture[0].weight is 'x'; must be a number"),
        ("data.mixture=[{name: a, shards: b, weight: true}]", "data.mixture[0].weight is true; must be a number"),
        ("data.mixture[0].weight=2", "data.mixture is {'0': {'weight': 2}}; must be a list"),
        ("model.pooling=[{after_layer: x, length: 8}]", "model.pooling[0].after_layer is 'x'; must be a whole number"),
        ("model=[1]", "model is [1]; must be a mapping (key: value)"),
        ("cluster.environment={A: 1}", "cluster.environment.A is 1; must be a text; put it into quotes"),
        ("=3", "override '=3': expected key=value, such as train.steps=100"),
    ],
)
def test_the_line_names_the_key_and_what_it_takes(setting: str, problem: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([], [setting])
    assert str(error.value) == problem


def test_texts_of_files_that_yaml_takes_for_others_need_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run: 2024\nprepare: {license: on}\n")
    with pytest.raises(UserError) as error:
        load_config([tmp_path / "a.yaml"])
    assert str(error.value).splitlines() == [
        "run is 2024; must be a text; put it into quotes",
        "prepare.license is true; must be a text, or null; put it into quotes",
    ]


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, annotation in typing.get_type_hints(schema).items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(annotation):
            yield from _keys(typing.cast(type, annotation), f"{prefix}{name}.")


@pytest.mark.parametrize("key", [*_keys(Config), *_keys(Architecture, "model.")])
def test_every_key_is_named(key: str, tmp_path: Path) -> None:
    *sections, name = key.split(".")
    nested = f"{name}: [[1]]"
    for section in reversed(sections):
        nested = f"{section}: {{{nested}}}"
    (tmp_path / "a.yaml").write_text(nested)
    with pytest.raises(UserError) as error:
        load_config([tmp_path / "a.yaml"])
    for line in str(error.value).splitlines():
        assert line.startswith((f"{key} is [[1]]; must be ", f"{key}[0] is [1]; must be ", f"{key}[1] is missing"))

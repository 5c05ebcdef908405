"""Libraries above what was tested are named, and refused where they could change results silently."""

import tomllib

import pytest

from tests.paths import ROOT
from transpooler.common import TESTED, UserError, check_version
from transpooler.common import versions as module
from transpooler.model.config import VERSIONS, check_transformers


@pytest.mark.parametrize(
    ("name", "installed", "outcome"),
    [
        ("transformers", "5.24.3", None),
        ("transformers", "5.25.0", "newer than 5.24"),
        ("transformers", "5.9.1", "older than 5.17"),
        ("torch", "2.99.0+cpu", "warning"),
        ("deepspeed", "0.19.8", None),
        ("deepspeed", "0.19.7", "older than 0.19.8"),
        ("deepspeed", "0.19.10", None),
        ("deepspeed", "0.20.0", "warning"),
    ],
)
def test_versions(monkeypatch, name, installed, outcome):
    monkeypatch.setattr(module.metadata, "version", {name: installed}.__getitem__)
    if outcome in (None, "warning"):
        assert bool(check_version(name)) == (outcome == "warning")
    else:
        with pytest.raises(UserError, match=outcome):
            check_version(name)


def test_what_is_installed_was_tested():
    assert [check_version(name) for name in TESTED] == [None] * len(TESTED)


def test_one_range_of_versions_everywhere():
    tested = TESTED["transformers"]
    assert tuple(".".join(map(str, pair)) for pair in VERSIONS) == (tested.oldest, tested.newest)
    with pytest.raises(ImportError, match="tested with transformers 5"):
        check_transformers("5.25.0.dev0")
    needs = {}
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, _, bounds = line.partition(">=")
        needs[name] = bounds.split(",<")
    for name, tested in TESTED.items():
        lowest, *ceiling = needs[name]
        assert not module._older(lowest, tested.oldest)
        assert not module._older(tested.oldest, lowest)
        major, minor = map(int, tested.newest.split("."))
        if tested.refuses_newer:
            assert ceiling == [f"{major}.{minor + 1}"]

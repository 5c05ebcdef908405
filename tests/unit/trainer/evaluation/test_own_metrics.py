"""A user's own metrics: found by name, and every mistake in them is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transpooler.common import UserError
from transpooler.trainer.config.load import load_config
from transpooler.trainer.evaluation.own_metrics import load_metrics, measure_all

MODULE = """
import numpy

LIMIT = 3
def coverage(document, reference, summary):
    return len(set(summary.split()) & set(document.split())) / max(1, len(set(summary.split())))
def agrees(document, reference, summary):
    return summary == reference
def whole(document, reference, summary):
    return numpy.float32(len(reference))
def fails(document, reference, summary):
    raise RuntimeError("no server\\nat port 80")
def exits(document, reference):
    return 1.0
def infinite(document, reference, summary):
    return float("inf")
def text(document, reference, summary):
    return "0.5"
def nothing(document, reference, summary):
    return None
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scores.py").write_text(MODULE)
    (tmp_path / "broken_scores.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_metric_sees_document_reference_and_summary() -> None:
    metrics = load_metrics(["own_scores:coverage", "own_scores:agrees", "own_scores:whole"])
    assert measure_all(metrics, "a b c", "a b", "a x", "d1") == {
        "own_scores:coverage": 0.5,
        "own_scores:agrees": 0.0,
        "own_scores:whole": 3.0,
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_scores:f", r"evaluation\.metrics: no_such_scores:f: cannot import no_such_scores: ModuleNotFoundErr"),
        ("broken_scores:f", r"broken_scores:f: cannot import broken_scores: SyntaxError: "),
        ("own_scores:coverag", r"own_scores has no coverag; did you mean coverage\?"),
        ("own_scores:LIMIT", r"own_scores:LIMIT is int, not a function of document, reference and summary"),
    ],
)
def test_what_cannot_be_called_is_told(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_metrics([name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"evaluation\.metrics: own_scores:fails failed on document d1: RuntimeError: no server$"),
        ("exits", r"own_scores:exits failed on document d1: TypeError: .*takes 2 positional arguments"),
        ("infinite", r"own_scores:infinite returned inf for document d1; it must return a finite number"),
        ("text", r"own_scores:text returned '0\.5' for document d1"),
        ("nothing", r"own_scores:nothing returned None for document d1"),
    ],
)
def test_a_metric_without_a_number_names_the_document(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_all(load_metrics([f"own_scores:{name}"]), "a", "b", "c", "d1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[own_scores]", r"evaluation\.metrics\[0\] is 'own_scores'; write module:function"),
        ("[a:b, 'own scores:f']", r"evaluation\.metrics\[1\] is 'own scores:f'; write module:function"),
        ("[a.b:c, a.b:c]", r"evaluation\.metrics\[1\] is 'a\.b:c', which stands there twice"),
        ("a:b", r"evaluation\.metrics is 'a:b'; must be a list"),
    ],
)
def test_names_are_checked_with_the_configuration(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config([], [f"evaluation.metrics={value}"])


def test_the_command_tells_before_it_looks_for_a_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "transpooler", "evaluate", "pyramidion", f"run={tmp_path}/none"]
    found = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name, message in (
        ("own_scores:coverag", "evaluation.metrics: own_scores:coverag: own_scores has no coverag"),
        ("own_scores:coverage", f"{tmp_path}/none/export: no exported model there"),  # so it was importable
    ):
        ended = subprocess.run(
            [*command, f"evaluation.metrics=[{name}]"],
            env=os.environ | {"PYTHONPATH": found},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 2
        assert ended.stderr.strip().splitlines()[-1].startswith(f"transpooler: error: {message}")

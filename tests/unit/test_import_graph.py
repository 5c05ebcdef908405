"""Who may import whom (docs/architecture): the rule, and a planted violation that proves the check can fail."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "common": {"common"},
    "model": {"model"},
    "data_pipeline": {"data_pipeline", "common"},
    "trainer": {"trainer", "model", "data_pipeline", "common"},
    "launch": {"launch", "trainer", "model", "data_pipeline", "common"},
    "benchmarks": {"benchmarks", "launch", "trainer", "model", "data_pipeline", "common"},
}
EXCEPTIONS = {"launch/commands/bench.py": {"benchmarks"}}
"""The command that starts the benchmarks; nothing else may depend on them."""
OWNERS = {
    "deepspeed": tuple(
        f"trainer/{name}.py" for name in ("engine", "compiled_ops", "checkpoint", "safe_load", "export")
    ),
    "webdataset": ("data_pipeline/", "benchmarks/data_loading.py"),  # there it is what is compared with
    "datasets": ("data_pipeline/",),
    "omegaconf": ("trainer/config_loader.py",),
    "triton": ("model/ops/",),
}


def imported_packages(source: str) -> set[str]:
    """Top-level names that the source imports, at module level or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def violations(path: str, source: str) -> list[str]:
    """Forbidden imports of one file, named."""
    package, imported = path.split("/")[0], imported_packages(source)
    allowed = ALLOWED[package] | EXCEPTIONS.get(path, set())
    wrong = [name for name in imported & ALLOWED.keys() if name not in allowed]
    wrong += [name for name in imported & OWNERS.keys() if not path.startswith(OWNERS[name])]
    return [f"{path} imports {name}" for name in sorted(wrong)]


def test_every_file_keeps_to_the_import_rules():
    files = [file for package in ALLOWED for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 20
    found = [line for file in files for line in violations(str(file.relative_to(ROOT)), file.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/attention.py", "from data_pipeline import shards"),
        ("data_pipeline/loader.py", "def f():\n    import model.pooler"),
        ("trainer/train.py", "from launch.cli import main"),
        ("trainer/train.py", "import deepspeed"),
        ("common/files.py", "import trainer"),
        ("trainer/loop.py", "from benchmarks import harness"),
        ("launch/commands/train.py", "import benchmarks"),
        ("launch/cli.py", "from benchmarks import harness"),
    ],
)
def test_a_planted_violation_is_found(path, source):
    assert len(violations(path, source)) == 1


def test_relative_and_standard_imports_are_no_violation():
    assert violations("model/attention.py", "from . import layers\nimport json, torch") == []
    assert "json" in sys.stdlib_module_names

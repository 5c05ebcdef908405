"""Who may import whom (docs/contributing.md): the rules, and planted violations that prove the check can fail."""

import ast
from collections.abc import Iterator

import pytest

from tests.paths import ROOT

ROOMS = ("common", "model", "data_pipeline", "trainer", "benchmarks", "launch")
ALLOWED = {
    "common": {"common"},
    "model": {"model"},  # copied into exports: it knows nothing else of ours
    "data_pipeline": {"data_pipeline", "common"},
    "trainer": {"trainer", "model", "data_pipeline", "common"},
    "benchmarks": {"benchmarks", "trainer", "model", "data_pipeline", "common"},
    "launch": {"launch", "benchmarks", "trainer", "model", "data_pipeline", "common"},
}
FLOORS = {
    "trainer": (
        {"config", "state", "run_folder"},
        {"engine", "checkpoint", "guards", "metrics", "profiler"},
        {"weights", "estimate", "report", "evaluation"},
        {"job"},
        {"step"},
        {"validation"},
        {"train"},
    ),
    "data_pipeline": (
        {"config", "limits", "objectives", "tokenizer", "tokenizer_rules", "text_tokens", "sources"},
        {"shards"},
        {"prepare", "order"},
        {"loading"},
    ),
}
"""Rooms of one folder, the lowest floor first: a room imports from its own floor and those below."""
OWNERS = {
    "deepspeed": ("trainer/engine/", "trainer/checkpoint/"),
    "webdataset": ("data_pipeline/shards/", "benchmarks/data_loading.py"),  # the benchmark compares with it
    "datasets": ("data_pipeline/sources/",),
    "omegaconf": ("trainer/config/",),
    "triton": ("model/ops/",),
    "peft": ("trainer/weights/",),
}
LAZY = {"transpooler"}
"""The package's own `__init__` names what others define; anybody may import it."""


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names of the modules that the source imports, at module level or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(package: str, room: str) -> int | None:
    """The floor of a room within its folder; None where the folder has no floors, or the room is new to us."""
    floors = FLOORS.get(package, ())
    return next((number for number, rooms in enumerate(floors) if room in rooms), None)


def violations(path: str, source: str) -> list[str]:
    """Forbidden imports of one file, named."""
    package, room = path.split("/")[0], path.split("/")[1].removesuffix(".py")
    found = []
    for name in imported_modules(source):
        top, *rest = name.split(".")
        if top in ROOMS:
            found.append(f"{path} imports {name} without transpooler.")
        if top in OWNERS and not path.startswith(OWNERS[top]):
            found.append(f"{path} imports {top}")
        if top != "transpooler" or not rest or rest[0] not in ROOMS:
            continue
        if rest[0] not in ALLOWED[package]:
            found.append(f"{path} imports {rest[0]}")
        own, other = floor_of(package, room), floor_of(package, rest[1]) if rest[0] == package and rest[1:] else None
        if own is not None and other is not None and other > own:
            found.append(f"{path} imports {rest[1]}, which stands above it")
    return found


def module_graph() -> dict[str, set[str]]:
    """Module -> modules that it imports when it is loaded (imports inside functions load later)."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in ROOMS
        for path in (ROOT / folder).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        top = ast.Module([node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.If)], [])
        names = [name.removeprefix("transpooler.") for name in imported_modules(ast.unparse(top))]
        graph[module] = {name if name in files else name.rpartition(".")[0] for name in names} & files.keys() - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first that is found; else an empty list."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        found = next((found for each in sorted(graph[module]) if (found := visit(each, [*way, module]))), [])
        done.add(module)
        return found

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def test_every_file_keeps_to_the_import_rules():
    files = [file for package in ALLOWED for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 20
    found = [line for file in files for line in violations(str(file.relative_to(ROOT)), file.read_text())]
    assert found == []


def test_tests_import_the_package_by_its_one_name():
    files = list((ROOT / "tests").rglob("*.py"))
    names = [(file, name) for file in files for name in imported_modules(file.read_text())]
    assert [(file, name) for file, name in names if name.split(".")[0] in ROOMS] == []


def test_every_room_of_a_folder_with_floors_stands_on_one():
    for package in FLOORS:
        rooms = {path.name.removesuffix(".py") for path in (ROOT / package).iterdir()}
        rooms -= {"__init__", "__pycache__", "README.md"}
        assert {room for room in rooms if floor_of(package, room) is None} == set()


def test_no_modules_import_each_other_in_a_circle():
    assert circle(module_graph()) == []


def test_a_planted_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/attention.py", "from transpooler.data_pipeline import shards"),
        ("model/attention.py", "from transpooler.common import files"),
        ("data_pipeline/loading/loader.py", "def f():\n    import transpooler.model.pooler"),
        ("trainer/train.py", "from transpooler.launch.cli import main"),
        ("trainer/train.py", "import deepspeed"),
        ("trainer/train.py", "from omegaconf import OmegaConf"),
        ("common/files.py", "import transpooler.trainer"),
        ("trainer/job.py", "from transpooler.benchmarks import harness"),
        ("benchmarks/harness.py", "from transpooler.launch.cli import main"),
        ("trainer/config/root.py", "from transpooler.trainer.engine import engine"),
        ("trainer/engine/engine.py", "from transpooler.trainer import job"),
        ("trainer/step.py", "from transpooler.trainer.train import train"),
        ("data_pipeline/shards/dataset.py", "from transpooler.data_pipeline.loading.loader import Loader"),
        ("data_pipeline/sources/records.py", "from transpooler.data_pipeline.prepare import clean"),
        ("data_pipeline/config.py", "from transpooler.data_pipeline.loading import examples"),
        ("data_pipeline/prepare/card.py", "import webdataset"),
        ("data_pipeline/shards/dataset.py", "import datasets"),
        ("launch/cli.py", "from trainer.train import train"),
    ],
)
def test_a_planted_violation_is_found(path, source):
    assert len(violations(path, source)) == 1


def test_relative_and_standard_imports_are_no_violation():
    assert violations("model/attention.py", "from . import layers\nimport json, torch") == []

"""The habits of docs/contributing.md that can be checked: sizes, names, and that no file looks for its own root."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

FOLDERS = ("common", "model", "data_pipeline", "trainer", "benchmarks", "launch")
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_ENTRIES = 300, 55, 17
NO_ENTRIES = {"README.md", "__pycache__", "results"}
FORBIDDEN = {
    "__file__": "no file computes where the package lies; use importlib.resources",
    "PYTHONPATH": "ranks find the installed package; nothing is put before it",
}
ALLOWED = {
    "model/ops/soft_topk/cpp_backend.py": "__file__",  # its C++ source stands beside it, in exports, too
    "model/ops/__main__.py": "__file__",  # that of what was compiled
    "trainer/config/cluster.py": "PYTHONPATH",  # the user's own is passed on
}


def code() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def too_long(name: str, source: str) -> Iterator[str]:
    """Files and functions above the limits."""
    if (lines := source.count("\n")) > MOST_LINES:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_LINES_OF_A_FUNCTION:
                yield f"{name}: {node.name} has {length} lines"


def public_classes(source: str) -> list[str]:
    """Names of the classes that a module offers."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]


def test_files_and_functions_are_short() -> None:
    assert [line for path in code() for line in too_long(str(path.relative_to(ROOT)), path.read_text())] == []


def test_a_long_file_and_a_long_function_are_found() -> None:
    assert list(too_long("x.py", "def f():\n" + "    pass\n" * 300)) == ["x.py: 301 lines", "x.py: f has 301 lines"]


def test_no_class_name_stands_twice() -> None:
    names = Counter(name for path in code() for name in public_classes(path.read_text()))
    assert {name for name, count in names.items() if count > 1} == set()


def test_no_test_file_has_the_name_of_another() -> None:
    """pytest imports them by name, and would run one of the two."""
    counts = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name, count in counts.items() if count > 1} == set()


def test_no_folder_of_code_has_too_many_entries() -> None:
    folders = {path.parent for path in code()}
    counts = {str(folder.relative_to(ROOT)): len({p.name for p in folder.iterdir()} - NO_ENTRIES) for folder in folders}
    assert {name: count for name, count in counts.items() if count > MOST_ENTRIES} == {}


@pytest.mark.parametrize("word", FORBIDDEN)
def test_nothing_depends_on_where_the_code_lies(word: str) -> None:
    found = [str(path.relative_to(ROOT)) for path in code() if word in path.read_text()]
    assert [name for name in found if ALLOWED.get(name) != word] == [], FORBIDDEN[word]

"""A real, long corpus that is on every machine: installed Python modules and their docstrings.

Source without its module docstring -> that docstring: "read the code, write its documentation". The standard library
and site-packages of the running interpreter are read; nothing is downloaded. The same installation gives the same
bytes.
"""

import ast
import hashlib
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transpooler.common import UserError, atomic_write, progress
from transpooler.data_pipeline.prepare.shingles import compute_bands, hash_words

MAX_FILE_BYTES = 400_000
MIN_PAIR_WORDS = 1_000
MIN_PRETRAIN_WORDS = 300
DOCSTRING_WORDS = (15, 400)
MIN_PART_WORDS, MAX_PARTS = 60, 12
"""Classes and functions of a training module that become pairs of their own: words at least, number at most."""
MAX_PRETRAIN_MODULES = 300
"""Of one package, so that preparation stays quick and no package outweighs the rest; chosen by hash of the id."""
HELD_OUT_SHARE = 0.1
MIN_HELD_OUT = 20
MIN_STANDARD_LIBRARY_PAIRS, MIN_PAIRS = 100, 250
"""What a usual installation of this project gives at the least; less means that something is wrong with it."""

_LEFT_OUT_FOLDERS = {
    *("test", "tests", "testing", "idle_test", "__pycache__", "lib2to3"),
    *("_vendor", "vendor", "vendored", "_vendored", "extern", "externals", "third_party"),
}
_TEST_FILE = re.compile(r"(test_.*|.*_tests?|tests?|conftest)\.py")
_GENERATED = re.compile(
    r"do not (edit|modify)|generated (by|from|using|with)|auto-?generated|automatically generated", re.I
)
_LICENCE = re.compile(r"licensed under|permission is hereby granted|redistribution and use|all rights reserved", re.I)
_NO_PROSE = re.compile(r"^\s*(?:>>> |:(?:copyright|license|author)s?:)", re.M | re.I)
# Comments and blank lines, then a triple-quoted string as the first statement.
_DOCSTRING = re.compile(
    r"""\A(?:[ \t\f]*(?:\#[^\n]*)?\n)*[rRuU]?(?P<quote>\"\"\"|''')(?:[^\\]|\\.)*?(?P=quote)[^\n]*""", re.S
)


@dataclass(frozen=True, slots=True)
class Module:
    """One module under its path as title; `source` lacks the docstring, which is `summary` where it makes a pair."""

    id: str
    package: str
    from_standard_library: bool
    text: str
    source: str
    summary: str | None


def write_python_corpus(output: Path) -> dict[str, int]:
    """Write train, validation, test (article, abstract, id) and pretrain (text, id) as .jsonl; count the pairs.

    Split by package, so that no near-copy crosses; pretrain holds modules of training packages only. Raises UserError
    if the installation gives less than MIN_STANDARD_LIBRARY_PAIRS or MIN_PAIRS.
    """
    modules = list(_read_modules())
    pairs = [module for module in modules if module.summary is not None]
    num_standard = sum(module.from_standard_library for module in pairs)
    if num_standard < MIN_STANDARD_LIBRARY_PAIRS or len(pairs) < MIN_PAIRS:
        raise UserError(
            f"this Python has {num_standard} documented standard modules (needs {MIN_STANDARD_LIBRARY_PAIRS}) and "
            f"{len(pairs)} documented modules in all (needs {MIN_PAIRS}); use your own documents: make demo "
            f"DATA=papers.jsonl"
        )
    split_of = split_packages(Counter(module.package for module in pairs))
    documents: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": [], "pretrain": []}
    for module in modules:
        split = split_of.get(module.package, "train")
        if module.summary is not None:
            documents[split].append({"article": module.source, "abstract": module.summary, "id": module.id})
            if split == "train":
                documents["train"] += cut_parts(module)
    training = [module for module in modules if split_of.get(module.package, "train") == "train"]
    kept = _choose_pretraining_ids(training)
    documents["pretrain"] = [{"text": module.text, "id": module.id} for module in training if module.id in kept]
    for split, records in documents.items():
        with atomic_write(output / f"{split}.jsonl") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return {"pairs": len(pairs), "standard_library_pairs": num_standard}


def _choose_pretraining_ids(modules: list[Module]) -> set[str]:
    """At most MAX_PRETRAIN_MODULES of each package."""
    taken: Counter[str] = Counter()
    kept = set()
    for module in sorted(modules, key=lambda module: hashlib.sha256(module.id.encode()).digest()):
        taken[module.package] += 1
        if taken[module.package] <= MAX_PRETRAIN_MODULES:
            kept.add(module.id)
    return kept


def split_packages(pairs_of_package: Counter[str]) -> dict[str, str]:
    """Package -> train, validation or test, by hash of the name; big packages go to train.

    test and validation each take packages until they have a tenth of the pairs, and at least MIN_HELD_OUT.
    """
    wanted = max(MIN_HELD_OUT, round(HELD_OUT_SHARE * pairs_of_package.total()))
    split_of = dict.fromkeys(pairs_of_package, "train")
    small = [package for package, count in pairs_of_package.items() if count <= wanted / 2]
    remaining = iter(sorted(small, key=lambda package: hashlib.sha256(package.encode()).digest()))
    for split in ("test", "validation"):
        taken = 0
        while taken < wanted and (package := next(remaining, None)) is not None:
            split_of[package] = split
            taken += pairs_of_package[package]
    return split_of


def cut_docstring(text: str) -> tuple[str, str] | None:
    """(text without the lines of its module docstring, docstring), or None if there is none to be cut."""
    match = _DOCSTRING.match(text)
    try:
        tree = ast.parse(match.group() if match else "")
    except (SyntaxError, ValueError):
        return None
    docstring = ast.get_docstring(tree)
    if docstring is None or len(tree.body) > 1:
        return None
    lines = text.split("\n")
    del lines[tree.body[0].lineno - 1 : tree.body[0].end_lineno]
    return "\n".join(lines), docstring


def cut_parts(module: Module) -> list[dict[str, str]]:
    """Documented classes and functions of a module as pairs: short, many, and like the whole in kind."""
    try:
        tree = ast.parse(module.source)
    except (SyntaxError, ValueError):
        return []
    lines, parts = module.source.split("\n"), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        summary = extract_summary(ast.get_docstring(node) or "")
        first = node.body[0]
        assert node.end_lineno is not None
        assert first.end_lineno is not None
        rest = [*lines[node.lineno - 1 : first.lineno - 1], *lines[first.end_lineno : node.end_lineno]]
        source = "\n".join([f"# {module.id} {node.name}", *rest])
        if summary is not None and len(source.split()) >= MIN_PART_WORDS:
            parts.append({"article": source, "abstract": summary, "id": f"{module.id}:{node.name}"})
    parts.sort(key=lambda part: hashlib.sha256(part["id"].encode()).digest())
    return parts[:MAX_PARTS]


def extract_summary(docstring: str) -> str | None:
    """The prose of a docstring, up to its first doctest or notice; None if too short, too long or a licence."""
    prose = _NO_PROSE.split(docstring, maxsplit=1)[0].strip()
    low, high = DOCSTRING_WORDS
    return prose if low <= len(prose.split()) <= high and not _LICENCE.search(prose) else None


def _read_modules() -> Iterator[Module]:
    """All usable modules, standard library first, each folder in sorted order; of near-copies the first alone."""
    seen: set[int | bytes] = set()
    files = list(_find_files())
    with progress("read installed Python modules", len(files)) as bar:
        for root, path, standard in files:
            module = _read_module(root, path, standard)
            if module is not None and not seen & (marks := _mark(module)):
                seen |= marks
                yield module
            bar.advance()


def _mark(module: Module) -> set[int | bytes]:
    """What a module shares with its near-copies: the bands of its source, and the words of its summary."""
    bands = compute_bands(hash_words(module.source)).tolist()
    return {*bands, *([hash_words(module.summary).tobytes()] if module.summary else [])}


def _find_files() -> Iterator[tuple[Path, Path, bool]]:
    """(root, file, whether of the standard library); no tests, and nothing vendored."""
    paths = sysconfig.get_paths()
    for name in dict.fromkeys(Path(paths[key]).resolve() for key in ("stdlib", "purelib", "platlib")):
        standard = name == Path(paths["stdlib"]).resolve()
        for path in sorted(name.rglob("*.py")):
            folders = path.relative_to(name).parts[:-1]
            if standard and folders and folders[0] in ("site-packages", "dist-packages"):
                continue
            if not (_LEFT_OUT_FOLDERS & {folder.lower() for folder in folders} or _TEST_FILE.fullmatch(path.name)):
                yield name, path, standard


def _read_module(root: Path, path: Path, standard: bool) -> Module | None:
    """A module; None if it cannot be read, is too big or too short, or was generated."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return None
    if len(data) > MAX_FILE_BYTES or len(text.split()) < MIN_PRETRAIN_WORDS or _GENERATED.search(text[:1000]):
        return None
    source, docstring = cut_docstring(text) or (text, "")
    # Without a docstring that tells enough, or too short without it, a module serves pretraining alone.
    summary = extract_summary(docstring) if len(source.split()) >= MIN_PAIR_WORDS else None
    parts = path.relative_to(root).parts
    name, package = "/".join(parts), parts[0].removesuffix(".py")
    title = f"# {name}\n"  # a document has a title, and a module's is its path
    return Module(name, package, standard, title + text, title + source, summary)

"""Real running text that is on every machine: what installed packages say of themselves, and Python's own manual.

Nothing is downloaded. The same installation gives the same bytes. What this package says of itself is left out: it
quotes planted notes.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics

from transpooler.common import UserError, atomic_write

MIN_WORDS = 400
MIN_TEXTS = 16
HELD_OUT_SHARE = 0.125
SPLITS = ("test", "validation", "train")

_NO_PROSE = re.compile(r"<!--.*?-->|<[^<>]*>|https?://\S+|^[ \t]*(?:```|[-=*~^+|#:]{3,})[^\n]*$", re.S | re.M)
_WORD = re.compile(r"[\w'\"`(\[][\w'\"`()\[\].,:;?!/+-]{0,23}")


def write_documentation(folder: Path) -> dict[str, Path]:
    """Write train, validation and test (text, id) as .jsonl; returns their paths. Split by package.

    Raises UserError if fewer than MIN_TEXTS have MIN_WORDS words.
    """
    texts = dict(_read_texts())
    if len(texts) < MIN_TEXTS:
        raise UserError(
            f"{len(texts)} installed packages have a description of {MIN_WORDS} words (needs {MIN_TEXTS}); use your "
            "own documents: transpooler demo --data papers.jsonl"
        )
    names = sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = round(HELD_OUT_SHARE * len(names))
    parts = (names[:held_out], names[held_out : 2 * held_out], names[2 * held_out :])
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    for path, part in zip(paths.values(), parts, strict=True):
        with atomic_write(path) as file:
            for name in part:
                file.write(json.dumps({"text": texts[name], "id": name}, ensure_ascii=False) + "\n")
    return paths


def _read_texts() -> Iterator[tuple[str, str]]:
    """(name, words of its description), of those that are long enough; the first of equal names."""
    found = [(str(each.metadata["Name"]), _describe(each.metadata)) for each in distributions()]
    found += [(f"python: {name}", text) for name, text in topics.items()]
    for name, text in sorted(found, reverse=True):
        words = [word for word in _NO_PROSE.sub(" ", text).split() if _WORD.fullmatch(word)]
        if len(words) >= MIN_WORDS and name != "transpooler":
            yield name, " ".join(words)


def _describe(metadata: object) -> str:
    """The long description, which is the body of METADATA or, in older ones, a field."""
    return str(metadata.get_payload() or metadata.get("Description") or "")  # type: ignore[attr-defined]

"""What readers make of arbitrary damage: documents, settings, checkpoints, or one UserError; no other exception.

A few seconds, always with the same cases. TRANSPOOLER_FUZZ_EXAMPLES=20000 tries so many new ones for each target.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.data_pipeline.sources.test_damage import KINDS, write
from transpooler.common import UserError
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.documents import Dropped, read_documents
from transpooler.data_pipeline.sources.records import DamagedFileError
from transpooler.launch import input_documents
from transpooler.trainer.checkpoint.checkpoint import problems
from transpooler.trainer.checkpoint.safe_load import load_file
from transpooler.trainer.config.load import config_to_yaml, load_config
from transpooler.trainer.config.root import Config

EXAMPLES = os.environ.get("TRANSPOOLER_FUZZ_EXAMPLES")
fuzz = settings(
    max_examples=int(EXAMPLES or 50),
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
BYTES = st.sampled_from(
    [b"", b"\0", b"\xff", b"\n", b"{", b'"', b"\0" * 600, b"\xff" * 5, b"\x28\xb5\x2f\xfd"]
) | st.binary(max_size=4)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 2, 9, 512, 10**9]), BYTES), min_size=1, max_size=3)
"""(place as a share of the file, how many bytes go, what comes in their stead); 10^9 cuts the file off."""
VALUES = [
    "",
    "null",
    "~",
    "-1",
    "0",
    "1e999",
    ".nan",
    "[",
    "]",
    "{a: 1}",
    "[1, {}]",
    "'",
    "!!python/none",
    "&a *a",
    "*b",
    "yes",
    "é\0",
]


def damage(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for share, length, new in edits:
        start = int(share * len(data))
        data = data[:start] + new + data[start + length :]
    return data


def told(read: Callable[[], object]) -> str:
    """What the user is told; nothing if all is well. Other exceptions are what is looked for."""
    try:
        read()
    except UserError as error:
        return str(error)
    return ""


def read_all(path: Path, require_target: bool) -> None:
    for item in read_documents([path], Columns.choose(require_target=require_target)):
        if not isinstance(item, Dropped):
            item.source.encode()
            assert item.source.strip()


def read_for_summaries(path: Path) -> None:
    for document in input_documents.read_documents(input_documents.find_inputs([str(path)], False), None):
        document.head(1000).encode()
        json.dumps(document.id, allow_nan=False)


@pytest.mark.parametrize("name", [*KINDS, "a.txt"])
def test_readers(tmp_path: Path, name: str) -> None:
    path, data = tmp_path / name, write(tmp_path / name)

    @given(EDITS)
    @fuzz
    def check(edits: list[tuple[float, int, bytes]]) -> None:
        path.write_bytes(damage(data, edits))
        for read in (lambda: read_all(path, name != "a.txt"), lambda: read_for_summaries(path)):
            message = told(read)
            assert not message or str(path) in message

    @given(st.floats(0, 1, exclude_max=True))
    @fuzz
    def check_cut(share: float) -> None:
        cut = int(share * len(data))
        path.write_bytes(data[:cut])
        if cut and data[cut:].strip(b"\0"):
            with pytest.raises(DamagedFileError):
                list(read_documents([path], Columns.choose(require_target=True)))

    check()
    if name not in ("a.jsonl", "a.txt"):  # which may be cut at the end of a line
        check_cut()


def test_the_configuration_loader(tmp_path: Path) -> None:
    lines = config_to_yaml(Config()).splitlines()

    @given(
        st.lists(st.tuples(st.integers(0, len(lines) - 1), st.sampled_from(VALUES) | st.text(max_size=5)), max_size=3),
        EDITS,
    )
    @fuzz
    def check(changes: list[tuple[int, str]], edits: list[tuple[float, int, bytes]]) -> None:
        changed, overrides = list(lines), []
        for number, value in changes:
            key = lines[number].partition(":")[0]
            changed[number] = f"{key}: {value}"
            overrides.append(f"{key.strip()}={value}")
        for text, given_values in (
            ("\n".join(changed).encode(errors="surrogatepass"), []),
            (damage("\n".join(lines).encode(), edits), overrides),
        ):
            (tmp_path / "a.yaml").write_bytes(text)
            told(partial(load_config, [tmp_path / "a.yaml"], given_values))

    check()


def test_the_checkpoint_reader(tmp_path: Path) -> None:
    state: dict[str, Any] = {"weights": torch.arange(40.0), "steps": [1, 2], "names": {"a": torch.ones(3, 4)}}
    torch.save(state, tmp_path / "random_rank0.pt")
    files = {"random_rank0.pt": {"size_bytes": (tmp_path / "random_rank0.pt").stat().st_size, "sha256": "0" * 64}}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "state": {"step": 3}}))
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}

    @example(tmp_path / "random_rank0.pt", [(0.0, 10**9, b".")])  # a pickle that takes from an empty stack
    @given(st.sampled_from(sorted(whole)), EDITS)
    @fuzz
    def check(path: Path, edits: list[tuple[float, int, bytes]]) -> None:
        path.write_bytes(damage(whole[path], edits))
        assert all(isinstance(problem, str) for problem in problems(tmp_path))
        message = told(lambda: load_file(tmp_path / "random_rank0.pt"))
        assert not message or "random_rank0.pt" in message
        path.write_bytes(whole[path])

    check()

"""A task turns some records of the input into a part, in any process. A part is one file, complete or absent.

It holds the token ids, metadata and content hashes of the documents that are kept, in order, and counts what was
dropped. Its bytes depend on the input and the settings alone, so a part that is there is never made again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from transpooler.common import atomic_write
from transpooler.data_pipeline.config import PrepareConfig
from transpooler.data_pipeline.prepare.clean import clean_text, find_length_problem, find_quality_problem, hash_content
from transpooler.data_pipeline.prepare.encoding import encode_long
from transpooler.data_pipeline.prepare.shingles import NUM_BANDS, HeldOut, compute_bands, hash_words, sample_shingles
from transpooler.data_pipeline.shards.dataset import checksum, token_dtype
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.documents import Dropped, FileVerdict, RawDocument, parse
from transpooler.data_pipeline.sources.records import Record, read_records
from transpooler.data_pipeline.tokenizer_rules import without_cleaning

SHOWN_DROPS = 5
"""Drops that are named for each reason; the rest is only counted."""
_ENCODE_CHARACTERS = 1_000_000
ROW_DTYPE = np.dtype(
    [
        *(("source_tokens", "<u4"), ("target_tokens", "<u4"), ("has_target", "?")),
        *(("meta_bytes", "<u4"), ("line", "<u8"), ("crc32", "<u4")),
    ]
)


@dataclass(frozen=True)
class Context:
    """Settings that all tasks of a split share; picklable. Each process loads the tokenizer once."""

    config: PrepareConfig
    columns: Columns
    tokenizer_file: str
    tokenizer_fingerprint: str
    """Of its content: another preparation in this process may have had another tokenizer in the same place."""
    vocab_size: int
    special_ids: tuple[int, ...]
    """Ids that no text may have: special tokens but <unk>, which stands for unknown characters."""
    held_out: str | None
    """File with the sketch of the held-out documents; None keeps all training documents."""
    sketch: bool
    """Whether this split is held out, so that its documents are sketched."""


@dataclass(frozen=True)
class Task:
    """Consecutive records of one file (or of a few text files), and the file of the part to be made."""

    part: Path
    records: list[Record]


def cut_tasks(locations: Sequence[str], folder: Path, columns: Columns, task_mib: float) -> Iterator[Task]:
    """Cut one file (or several small ones) into tasks; only the records and their sizes decide where."""
    limit, size, number, batch = int(task_mib * 2**20), 0, 0, []
    for location in locations:
        for record in read_records(location, columns):
            batch.append(record)
            size += _measure(record[2])
            if size >= limit:
                yield Task(folder / f"{number:06d}.npz", batch)
                batch, size, number = [], 0, number + 1
    if batch or not number:
        yield Task(folder / f"{number:06d}.npz", batch)


def run_task(context: Context, task: Task) -> Path:
    """Do a task and write its part; returns the part's path."""
    maker = _PartMaker(context)
    for batch in _batch(maker.select(task.records)):
        maker.encode(batch)
    _save_arrays(task.part, maker.arrays())
    return task.part


def read_array(part: Path, name: str) -> np.ndarray:
    """Read one of the arrays of a part; see `_PartMaker.arrays`."""
    with np.load(part, allow_pickle=False) as arrays:
        return arrays[name]


def read_part_info(part: Path) -> dict[str, Any]:
    """Read what a part says of its input: counts of the records, of what was dropped, and the first drops."""
    return json.loads(read_array(part, "info").tobytes())


class _PartMaker:
    """Collects the documents of one task."""

    def __init__(self, context: Context) -> None:
        self.context, self.config = context, context.config
        self.backend = _load_backend(context.tokenizer_file, context.tokenizer_fingerprint)
        self.held_out = load_held_out(context.held_out) if context.held_out else None
        self.verdict = FileVerdict()
        self.dropped: dict[str, int] = {}
        self.examples: list[tuple[str, str, int]] = []
        self.rows: list[tuple[int, int, bool, int, int, int]] = []
        self.tokens: list[np.ndarray] = []
        self.metas: list[bytes] = []
        self.hashes: list[bytes] = []
        self.bands: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []

    def select(self, batch: list[Record]) -> Iterator[RawDocument]:
        """Yield the documents that pass all filters of text, cleaned."""
        for record in batch:
            result = parse(record, self.context.columns)
            self.verdict.add(record, result)
            if isinstance(result, Dropped):
                self.drop(result.reason, result)
                continue
            clean = self.config.clean
            source = clean_text(result.source, clean)
            target = None if result.target is None else clean_text(result.target, clean)
            problem = find_length_problem(source, target, clean)
            if not problem and clean.quality:
                problem = find_quality_problem(source, clean)
            if problem:
                self.drop(problem, result)
            else:
                yield RawDocument(result.id, source, target, result.path, result.line)

    def encode(self, batch: list[RawDocument]) -> None:
        """Tokenize documents and add them."""
        targets = [document.target for document in batch if document.target is not None]
        texts = [document.source for document in batch] + targets
        short = [text for text in texts if len(text) <= _ENCODE_CHARACTERS]
        encodings = iter(self.backend.encode_batch_fast(short, add_special_tokens=False))
        dtype = token_dtype(self.context.vocab_size)
        ids = [
            np.array(next(encodings).ids, dtype)
            if len(text) <= _ENCODE_CHARACTERS
            else np.concatenate(encode_long(self.backend, text, _ENCODE_CHARACTERS)).astype(dtype)
            for text in texts
        ]
        rest = iter(ids[len(batch) :])
        for document, source in zip(batch, ids, strict=False):
            self.add(document, source, next(rest) if document.target is not None else None)

    def add(self, document: RawDocument, source: np.ndarray, target: np.ndarray | None) -> None:
        """Add one tokenized document, unless a filter of tokens or of held-out documents drops it."""
        clean, digest = self.config.clean, hash_content(document.source)
        problem = _find_token_problem(self.config, source, target)
        if any(tokens is not None and np.isin(tokens, self.context.special_ids).any() for tokens in (source, target)):
            problem = "holds_special_token"  # of one character, which no rule can make a letter
        words = None
        if self.held_out or self.context.sketch or clean.near_duplicates:
            words = hash_words(document.source)
        if not problem and self.held_out and words is not None:
            overlaps = self.held_out.overlaps(words, digest, clean.held_out_overlap or 1.0)
            problem = "overlaps_held_out" if overlaps else None
        if problem:
            self.drop(problem, document)
            return
        meta: dict[str, Any] = {"id": document.id, "file": document.path, "line": document.line}
        if document.target is not None:
            meta["target_text"] = document.target
        if self.config.keep_source_text:
            meta["source_text"] = document.source
        data = json.dumps(meta, ensure_ascii=False).encode()
        num_target = 0 if target is None else len(target)
        crc32 = checksum(data, source, target)
        self.rows.append((len(source), num_target, target is not None, len(data), document.line, crc32))
        self.tokens += [source] if target is None else [source, target]
        self.metas.append(data)
        self.hashes.append(digest)
        if clean.near_duplicates and words is not None:
            # A text without words resembles only its equals.
            self.bands.append(compute_bands(words if len(words) else np.frombuffer(digest, np.uint64)))
        if self.context.sketch and words is not None:
            self.samples.append(sample_shingles(words))

    def drop(self, reason: str, where: RawDocument | Dropped) -> None:
        """Count a document that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if self.dropped[reason] <= SHOWN_DROPS:
            self.examples.append((reason, where.path, where.line))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the content of the part's file."""
        verdict = self.verdict
        info = {
            "records": dict(sorted(verdict.counts.items())),
            "keys": verdict.keys,
            "first_bad": verdict.first_bad,
            "dropped": dict(sorted(self.dropped.items())),
            "examples": self.examples,
        }
        empty, numbers = np.zeros(0, token_dtype(self.context.vocab_size)), np.zeros(0, np.uint64)
        return {
            "info": np.frombuffer(json.dumps(info).encode(), np.uint8),
            "rows": np.array(self.rows, ROW_DTYPE),
            "tokens": np.concatenate(self.tokens) if self.tokens else empty,
            "meta": np.frombuffer(b"".join(self.metas), np.uint8),
            "hashes": np.frombuffer(b"".join(self.hashes), "<u8").reshape(-1, 2),
            "bands": np.array(self.bands, np.uint64).reshape(-1, NUM_BANDS),
            "samples": np.concatenate(self.samples) if self.samples else numbers,
            "sample_sizes": np.array([len(sample) for sample in self.samples], np.int64),
        }


def save_held_out(parts: Sequence[Path], path: Path) -> None:
    """Write the sketches of all held-out parts into one file."""
    names = ("samples", "sample_sizes", "hashes")
    _save_arrays(path, {name: np.concatenate([read_array(part, name) for part in parts]) for name in names})


@cache
def load_held_out(path: str) -> HeldOut:
    """Read what `save_held_out` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        samples = np.split(arrays["samples"], np.cumsum(arrays["sample_sizes"])[:-1])
        return HeldOut(list(samples), [row.tobytes() for row in arrays["hashes"]])


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_write(path, "wb", unique=True) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _batch(documents: Iterator[RawDocument]) -> Iterator[list[RawDocument]]:
    """Yield batches of a limited number of characters, so that memory does not grow with the documents."""
    batch: list[RawDocument] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.source)
        if characters >= _ENCODE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _find_token_problem(config: PrepareConfig, source: np.ndarray, target: np.ndarray | None) -> str | None:
    sides = (
        ("source", source, config.min_source_tokens, config.max_source_tokens),
        ("target", target, config.min_target_tokens, config.max_target_tokens),
    )
    for name, tokens, low, high in sides:
        if tokens is not None and len(tokens) < low:
            return f"{name}_too_short"
        if tokens is not None and high is not None and len(tokens) > high:
            return f"{name}_too_long"
    return None


def _measure(value: Any) -> int:
    if isinstance(value, dict):
        return sum(_measure(item) for item in value.values()) + 64
    if isinstance(value, list):
        return sum(map(_measure, value))
    return len(value) if isinstance(value, bytes | str) else 8


@cache
def _load_backend(path: str, fingerprint: str) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(path)
    backend.normalizer = without_cleaning(backend)  # texts come cleaned, and cleaning again takes a fifth of the time
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # "<mask>" in a document is six characters, not the special token
    return backend

"""Shards on disk: ordinary WebDataset tars, one index.json and one documents.npy a split. The format, and its reader.

Reading is by byte offset (`pread`), so any document is one small read away, whatever its shard. A shard's file is open
only while a document is read: the dataset holds no descriptors, may be pickled and shared between threads.
"""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_json

FORMAT = 1
INDEX_NAME = "index.json"
DOCUMENTS_NAME = "documents.npy"
DOCUMENT_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("source_offset", "<u8"),
        ("source_tokens", "<u4"),
        ("target_offset", "<u8"),
        ("target_tokens", "<u4"),
        ("meta_offset", "<u8"),
        ("meta_bytes", "<u4"),
    ]
)
"""A row of documents.npy. Offsets are those of the members' payloads (.npy files, JSON); no summary: both target
fields 0."""

TAR_BLOCK = 512
NPY_HEADER_BYTES = 128  # of a one-dimensional array in .npy format 1.0


@dataclass(frozen=True, slots=True)
class Document:
    """One document as raw token ids (no special tokens) with its metadata."""

    key: str
    source: np.ndarray
    target: np.ndarray | None
    meta: dict[str, Any]


def document_key(split: str, number: int) -> str:
    """Key of a document in its tar and everywhere else; without dots, since WebDataset cuts keys at the first one."""
    return f"{split}-{number:08d}"


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else uint32; little-endian on every machine."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardDataset:
    """Random access to the documents of one split folder; checks the files' sizes against the index when it opens."""

    def __init__(self, split_folder: Path) -> None:
        self.folder = Path(split_folder)
        if not (self.folder / INDEX_NAME).is_file():
            raise UserError(f"{self.folder}: no shards here (no {INDEX_NAME}); run `transpooler prepare` first")
        self.index: dict[str, Any] = read_json(self.folder / INDEX_NAME)
        if self.index.get("format") != FORMAT:
            raise UserError(
                f"{self.folder / INDEX_NAME}: format {self.index.get('format')}, not {FORMAT}; prepare again"
            )
        self._shards = [self.folder / shard["name"] for shard in self.index["shards"]]
        self._check_sizes()
        self._rows = self._open_documents()
        self._dtype = np.dtype(self.index["token_dtype"]).newbyteorder("<")
        self.source_lengths = self._rows["source_tokens"].astype(np.int64)
        """Tokens of each source, int64."""
        self.target_lengths = self._rows["target_tokens"].astype(np.int64)
        """Tokens of each summary, int64; 0 = no summary."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def key(self, number: int) -> str:
        """Key of document `number`, without reading it."""
        return document_key(self.index["split"], number)

    def read(self, number: int) -> Document:
        """Read one document; a shard that no longer agrees with the index is a UserError that names it."""
        row = self._rows[number]
        path = self._shards[int(row["shard"])]
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                source = self._read_tokens(descriptor, int(row["source_offset"]), int(row["source_tokens"]))
                has_target = bool(row["target_offset"])
                target = (
                    self._read_tokens(descriptor, int(row["target_offset"]), int(row["target_tokens"]))
                    if has_target
                    else None
                )
                meta = json.loads(os.pread(descriptor, int(row["meta_bytes"]), int(row["meta_offset"])))
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged shard: document {number} cannot be read ({error}); prepare again"
            ) from error
        return Document(self.key(number), source, target, meta)

    def _read_tokens(self, descriptor: int, offset: int, num_tokens: int) -> np.ndarray:
        payload = os.pread(descriptor, NPY_HEADER_BYTES + num_tokens * self._dtype.itemsize, offset)
        tokens = np.load(io.BytesIO(payload), allow_pickle=False)
        if tokens.dtype != self._dtype or tokens.shape != (num_tokens,):
            raise ValueError(f"expected {num_tokens} tokens, found {tokens.dtype} {tokens.shape}")
        return tokens

    def _check_sizes(self) -> None:
        for path, shard in zip(self._shards, self.index["shards"], strict=True):
            size = path.stat().st_size if path.is_file() else None
            if size != shard["size_bytes"]:
                state = "missing" if size is None else f"{size} bytes instead of {shard['size_bytes']}"
                raise UserError(f"{path}: damaged shard ({state}); remove {self.folder.parent} and prepare again")

    def _open_documents(self) -> np.ndarray:
        path = self.folder / DOCUMENTS_NAME
        try:
            rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read: {error}; remove {self.folder.parent} and prepare again") from error
        if rows.dtype != DOCUMENT_DTYPE or len(rows) != self.index["num_documents"]:
            raise UserError(f"{path}: does not belong to {INDEX_NAME}; remove {self.folder.parent} and prepare again")
        return rows

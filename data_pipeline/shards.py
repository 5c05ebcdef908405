"""Shards on disk: ordinary WebDataset tars, one index.json and one documents.npy a split. Reader and writer.

Reading is by byte offset (`pread`), so any document is one small read away, whatever its shard. A shard's file is open
only while a document is read: the dataset holds no descriptors, may be pickled and shared between threads.
"""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import atomic_write, fsync_folder, read_json, write_json

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

_TAR_BLOCK = 512
_NPY_HEADER_BYTES = 128  # of a one-dimensional array in .npy format 1.0


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
        payload = os.pread(descriptor, _NPY_HEADER_BYTES + num_tokens * self._dtype.itemsize, offset)
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


class _HashingFile:
    """Passes writes on and remembers their SHA-256 and number of bytes."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: SIM115 closed by ShardWriter
        self.hash, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


class ShardWriter:
    """Writes one split into an empty folder; `finish` writes documents.npy and, last of all, index.json.

    Bytes depend on the documents alone: no times, users or host names get into the tars.
    """

    def __init__(self, folder: Path, split: str, *, vocab_size: int, fingerprint: str, shard_size_mib: float) -> None:
        self.folder, self.split, self.vocab_size, self.fingerprint = folder, split, vocab_size, fingerprint
        self.dtype = token_dtype(vocab_size)
        self.num_documents = self.num_source_tokens = self.num_target_tokens = 0
        self._max_bytes = int(shard_size_mib * 2**20)
        self._shards: list[dict[str, Any]] = []
        self._tar: Any = None
        folder.mkdir(parents=True)
        self._rows = open(folder / "documents.rows", "wb")  # noqa: SIM115 closed by finish

    def add(self, source: np.ndarray, target: np.ndarray | None, meta: dict[str, Any]) -> None:
        """Append one document of raw token ids."""
        if self._tar is not None and self._tar.tarstream.offset >= self._max_bytes:
            self._close_shard()
        if self._tar is None:
            self._open_shard()
        members = {"json": json.dumps(meta, ensure_ascii=False).encode(), "source.npy": self._npy(source)}
        if target is not None:
            members["target.npy"] = self._npy(target)
        offsets, end = {}, self._tar.tarstream.offset
        for name in sorted(members):  # the order in which TarWriter writes them
            offsets[name] = end + _TAR_BLOCK
            end += _TAR_BLOCK + -(-len(members[name]) // _TAR_BLOCK) * _TAR_BLOCK
        self._tar.write({"__key__": document_key(self.split, self.num_documents), **members})
        assert self._tar.tarstream.offset == end, "the tar writer no longer lays members out as we count"
        num_target = 0 if target is None else len(target)
        row = (len(self._shards), offsets["source.npy"], len(source), offsets.get("target.npy", 0), num_target)
        self._rows.write(np.array([(*row, offsets["json"], len(members["json"]))], DOCUMENT_DTYPE).tobytes())
        self.num_documents += 1
        self.num_source_tokens += len(source)
        self.num_target_tokens += num_target

    def finish(self, dropped: Counter[str]) -> dict[str, Any]:
        """Close everything and write the index; returns it."""
        if self._tar is not None:
            self._close_shard()
        self._rows.close()
        self._write_documents()
        index = {
            "format": FORMAT,
            "split": self.split,
            "tokenizer_fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "token_dtype": self.dtype.name,
            "num_documents": self.num_documents,
            "num_source_tokens": self.num_source_tokens,
            "num_target_tokens": self.num_target_tokens,
            "dropped": dict(sorted(dropped.items())),
            "shards": self._shards,
        }
        write_json(self.folder / INDEX_NAME, index)
        return index

    def _open_shard(self) -> None:
        from webdataset.writer import TarWriter

        self._first = self.num_documents
        self._name = f"{self.split}-{len(self._shards):06d}.tar"
        self._file = _HashingFile(self.folder / self._name)
        self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False)

    def _close_shard(self) -> None:
        self._tar.close()
        self._file.close()
        self._tar = None
        self._shards.append(
            {
                "name": self._name,
                "size_bytes": self._file.size,
                "sha256": self._file.hash.hexdigest(),
                "num_documents": self.num_documents - self._first,
            }
        )

    def _write_documents(self) -> None:
        """Put the .npy header, which holds the number of rows, before the rows that were written as they came."""
        rows = self.folder / "documents.rows"
        header = {"descr": DOCUMENT_DTYPE.descr, "fortran_order": False, "shape": (self.num_documents,)}
        with atomic_write(self.folder / DOCUMENTS_NAME, "wb") as file, open(rows, "rb") as body:
            np.lib.format.write_array_header_1_0(file, header)
            shutil.copyfileobj(body, file)
        rows.unlink()
        fsync_folder(self.folder)

    def _npy(self, tokens: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(tokens, self.dtype), version=(1, 0), allow_pickle=False)
        return buffer.getvalue()

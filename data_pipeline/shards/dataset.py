"""The format of a split (ordinary WebDataset tars, index.json and documents.npy), and its reader.

Documents are read by byte offset, so any document costs one `pread`. A shard's file is open only while a document is
read: the dataset holds no descriptors, and can be pickled and shared between threads and processes. Shards behind a URL
are read from a local cache (`remote`).
"""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transpooler.common import UserError, local_path, read_json
from transpooler.data_pipeline.shards.remote import Cache, RemoteSplit, join
from transpooler.data_pipeline.sources.locations import is_remote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
        ("crc32", "<u4"),
    ]
)
"""A row of documents.npy. Offsets are those of the members' payloads (.npy files, JSON) in the tar, in bytes. Without a
summary both target fields are 0. crc32: see `checksum`; earlier versions wrote none."""

TAR_BLOCK = 512
NPY_HEADER_BYTES = 128  # of a one-dimensional array in .npy format 1.0
MAX_EVICTIONS = 10
_INDEX_TYPES = {
    **dict.fromkeys(("split", "tokenizer_fingerprint"), str),
    **dict.fromkeys(("vocab_size", "num_documents", "num_source_tokens", "num_target_tokens"), int),
    "shards": list,
    "dropped": dict,
}
_SHARD_TYPES = {"name": str, "size_bytes": int, "sha256": str, "num_documents": int}


@dataclass(frozen=True, slots=True)
class Document:
    """One document as raw token ids (no special tokens) with its metadata."""

    key: str
    source: np.ndarray
    target: np.ndarray | None
    meta: dict[str, Any]


def document_key(split: str, number: int) -> str:
    """Return a document's key, as in its tar. It holds no dots, since WebDataset cuts keys at the first dot."""
    return f"{split}-{number:08d}"


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 if every id fits, else uint32; little-endian on every machine."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def checksum(meta: bytes, source: np.ndarray, target: np.ndarray | None) -> int:
    """Return the CRC-32 of a document: of its JSON, its source ids and its target ids (without .npy headers)."""
    tokens = zlib.crc32(source.data, zlib.crc32(meta))
    return tokens if target is None else zlib.crc32(target.data, tokens)


class DamagedShardError(UserError):
    """A shard is missing or differs from the index; the message names it."""


class ShardDataset:
    """Random access to the documents of one split folder or URL (which needs a `cache`).

    The index is compared with the sizes of local shards when the dataset opens (unless `check_sizes` is false), with
    sizes and SHA-256 of remote shards when they are fetched, and with each document's CRC-32 when it is read.
    """

    def __init__(self, split_folder: str | Path, cache: Cache | None = None, *, check_sizes: bool = True) -> None:
        self._remote: RemoteSplit | None = None
        if is_remote(split_folder):
            assert cache is not None, "shards behind a URL need a cache"
            self.folder: str | Path = str(split_folder)
            self._remote = RemoteSplit(self.folder, cache, (INDEX_NAME, DOCUMENTS_NAME))
            self._local = self._remote.local
        else:
            self.folder = self._local = local_path(split_folder)
        if not (self._local / INDEX_NAME).is_file():
            raise UserError(f"{self.folder}: no shards here (no {INDEX_NAME}); run `transpooler prepare` first")
        self.index = _read_index(self._local, self.folder)
        self._shards: list[dict[str, Any]] = self.index["shards"]
        if check_sizes and self._remote is None:
            self._check_sizes()
        self.rows = _open_rows(self._local, self.index)
        """documents.npy on disk: DOCUMENT_DTYPE, or the same without crc32."""
        self._has_checksums = "crc32" in (self.rows.dtype.names or ())
        self._dtype = np.dtype(self.index["token_dtype"]).newbyteorder("<")
        self.source_lengths = self.rows["source_tokens"]
        """Tokens of each source, uint32: a view of documents.npy on disk."""
        self.target_lengths = self.rows["target_tokens"]
        """Tokens of each summary, uint32; 0 = no summary. A view, too."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "cache": self._remote.cache if self._remote else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["cache"], check_sizes=False)  # type: ignore[misc]

    @property
    def shard_documents(self) -> list[int]:
        """Documents of each shard, in corpus order."""
        return [int(shard["num_documents"]) for shard in self._shards]

    @property
    def remote_bytes(self) -> list[int]:
        """Sizes of the shards that must be fetched; empty if they are local."""
        return [int(shard["size_bytes"]) for shard in self._shards] if self._remote else []

    def key(self, number: int) -> str:
        """Key of document `number`, without reading it."""
        return document_key(self.index["split"], number)

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerFast", shards: str | Path) -> None:
        """UserError unless the split was prepared with this tokenizer, that of `shards`, and knows no more tokens."""
        from transpooler.data_pipeline.tokenizer import has_fingerprint

        is_own = has_fingerprint(tokenizer, self.index["tokenizer_fingerprint"])
        if not is_own or self.index["vocab_size"] > len(tokenizer):
            raise UserError(
                f"{shards}: its tokenizer is not the tokenizer of the shards in {self.folder}; prepare again"
            )

    def fetch_ahead(self, number: int) -> None:
        """Start to fetch the shard of a document, if it is remote."""
        shard = int(self.rows[number]["shard"])
        if self._remote is not None and shard < len(self._shards):
            self._remote.fetch_ahead(self._shards[shard])

    def read(self, number: int) -> Document:
        """Read one document; DamagedShardError if its shard is missing or differs from the index."""
        row = self.rows[number]
        if int(row["shard"]) >= len(self._shards):
            raise DamagedShardError(
                f"{join(self.folder, DOCUMENTS_NAME)}: damaged: document {number} is in shard {row['shard']} of "
                f"{len(self._shards)}; restore it or prepare again"
            )
        entry = self._shards[int(row["shard"])]
        try:
            payload, start = self._read_members(entry, row)
            source = self._read_tokens(payload, int(row["source_offset"]) - start, int(row["source_tokens"]))
            target = None
            if row["target_offset"]:
                target = self._read_tokens(payload, int(row["target_offset"]) - start, int(row["target_tokens"]))
            self._check_ids(source, target)
            begin = int(row["meta_offset"]) - start
            text = payload[begin : begin + int(row["meta_bytes"])]
            if self._has_checksums and checksum(text, source, target) != row["crc32"]:
                raise ValueError(f"its bytes are not those that {DOCUMENTS_NAME} knows")
            meta = json.loads(text)
        except (OSError, ValueError, UserError) as error:
            raise DamagedShardError(
                f"{join(self.folder, entry['name'])}: damaged shard: document {number} cannot be read ({error}); "
                "restore it or prepare again"
            ) from error
        return Document(self.key(number), source, target, meta)

    def _read_members(self, entry: dict[str, Any], row: np.ndarray) -> tuple[bytes, int]:
        """Read one document's members and what lies between them; returns the bytes and their offset in the shard."""
        ends = [int(row["meta_offset"]) + int(row["meta_bytes"])]
        for side in ("source", "target"):
            if row[f"{side}_offset"]:
                num_bytes = NPY_HEADER_BYTES + int(row[f"{side}_tokens"]) * self._dtype.itemsize
                ends.append(int(row[f"{side}_offset"]) + num_bytes)
        start = min(int(row["meta_offset"]), int(row["source_offset"]))
        if max(ends) > entry["size_bytes"]:
            raise ValueError(f"{DOCUMENTS_NAME} places it behind the end of the shard")
        descriptor = self._open(entry)
        try:
            payload = os.pread(descriptor, max(ends) - start, start)
        finally:
            os.close(descriptor)
        if len(payload) < max(ends) - start:
            raise ValueError("the shard ends too early")
        return payload, start

    def fetch(self, number: int) -> Path:
        """Return the local path of a shard, by its number; fetches it first if it is remote."""
        entry = self._shards[number]
        return self._local / entry["name"] if self._remote is None else self._remote.shard(entry)

    def _open(self, entry: dict[str, Any]) -> int:
        if self._remote is None:
            return os.open(self._local / entry["name"], os.O_RDONLY)
        for _ in range(MAX_EVICTIONS):  # another process may evict it between fetching and opening
            try:
                return os.open(self._remote.shard(entry), os.O_RDONLY)
            except FileNotFoundError:
                continue
        raise UserError(f"{entry['name']} is evicted from the cache at once; raise data.cache_gib")

    def _read_tokens(self, payload: bytes, offset: int, num_tokens: int) -> np.ndarray:
        header = make_npy_header(self._dtype, num_tokens)
        if payload[offset : offset + NPY_HEADER_BYTES] != header:
            raise ValueError(f"no .npy file of {num_tokens} {self._dtype} tokens where the index says")
        return np.frombuffer(payload, self._dtype, count=num_tokens, offset=offset + NPY_HEADER_BYTES)

    def _check_ids(self, *sides: np.ndarray | None) -> None:
        """ValueError: a token is none of the vocabulary, for which no model has an embedding."""
        size = self.index["vocab_size"]
        for tokens in sides:
            if tokens is not None and (highest := int(tokens.max(initial=0))) >= size:
                raise ValueError(f"it holds id {highest}, the vocabulary has {size}")

    def _check_sizes(self) -> None:
        for shard in self._shards:
            path = self._local / shard["name"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["size_bytes"]:
                state = "missing" if size is None else f"{size} bytes instead of {shard['size_bytes']}"
                raise DamagedShardError(f"{path}: damaged shard ({state}); restore it or prepare again")


def _read_index(local: Path, folder: str | Path) -> dict[str, Any]:
    """Read the index of a split. UserError: it is of another format, or what a reader needs is not in it."""
    index, path = read_json(local / INDEX_NAME, "restore it or prepare again"), join(folder, INDEX_NAME)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(f"{path}: is not of format {FORMAT}; prepare again")
    wrong = [name for name, kind in _INDEX_TYPES.items() if not isinstance(index.get(name), kind)]
    shards = index["shards"] if "shards" not in wrong else []
    if any(not isinstance(entry.get(name), kind) for entry in shards for name, kind in _SHARD_TYPES.items()):
        wrong.append("shards")
    elif not wrong and sum(entry["num_documents"] for entry in shards) != index["num_documents"]:
        wrong.append("num_documents")
    if index.get("token_dtype") not in ("uint16", "uint32"):
        wrong.append("token_dtype")
    if wrong:
        raise DamagedShardError(f"{path}: damaged index ({', '.join(wrong)}); restore it or prepare again")
    return index


def _open_rows(folder: Path, index: dict[str, Any]) -> np.ndarray:
    path = folder / DOCUMENTS_NAME
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedShardError(f"{path}: cannot read: {error}; restore it or prepare again") from error
    is_table = rows.dtype in (DOCUMENT_DTYPE, np.dtype(DOCUMENT_DTYPE.descr[:-1])) and rows.ndim == 1
    if not is_table or len(rows) != index["num_documents"]:
        raise DamagedShardError(f"{path}: does not belong to {INDEX_NAME} beside it; restore it or prepare again")
    return rows


def make_npy_header(dtype: np.dtype, num_tokens: int) -> bytes:
    """Return the first NPY_HEADER_BYTES of a one-dimensional .npy file (version 1.0), as numpy writes them."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({num_tokens},), }}"
    return b"\x93NUMPY\x01\x00" + (NPY_HEADER_BYTES - 10).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"

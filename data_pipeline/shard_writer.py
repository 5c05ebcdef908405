"""Writing a split: WebDataset tars, then the index. See docs/data-format.md."""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write, fsync_folder, write_json
from data_pipeline.shards import (
    DOCUMENT_DTYPE,
    DOCUMENTS_NAME,
    FORMAT,
    INDEX_NAME,
    TAR_BLOCK,
    document_key,
    token_dtype,
)


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
            offsets[name] = end + TAR_BLOCK
            end += TAR_BLOCK + -(-len(members[name]) // TAR_BLOCK) * TAR_BLOCK
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

"""Plans a split, and writes its WebDataset tars, each by itself.

See docs/data-format.md. Bytes depend on the documents alone: the tars hold no times, users or host names.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from transpooler.common import atomic_write, sha256_of
from transpooler.data_pipeline.shards.dataset import (
    DOCUMENT_DTYPE,
    NPY_HEADER_BYTES,
    TAR_BLOCK,
    document_key,
    make_npy_header,
)


@dataclass(frozen=True)
class ShardJob:
    """One tar, and the rows of parts that it holds, in order."""

    path: Path
    split: str
    first: int
    """Number of its first document."""
    part_rows: list[tuple[str, np.ndarray]]
    """(part file, numbers of its rows)."""
    size_bytes: int


def plan_shards(kept: np.ndarray, token_bytes: int, max_bytes: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Plan the shards of the documents that are kept, given by their rows (prepare.tasks.ROW_DTYPE).

    Returns the content of documents.npy (DOCUMENT_DTYPE) and (first document, end, bytes) of each shard. A shard is
    closed when it holds `max_bytes` or more.
    """

    def padded(size: np.ndarray) -> np.ndarray:
        return -(-size // TAR_BLOCK) * TAR_BLOCK

    meta = kept["meta_bytes"].astype(np.int64)
    source = NPY_HEADER_BYTES + kept["source_tokens"].astype(np.int64) * token_bytes
    target = NPY_HEADER_BYTES + kept["target_tokens"].astype(np.int64) * token_bytes
    to_source = TAR_BLOCK + padded(meta)
    to_target = to_source + TAR_BLOCK + padded(source)
    size = to_target + np.where(kept["has_target"], TAR_BLOCK + padded(target), 0)
    ends = np.cumsum(size)
    documents = np.zeros(len(kept), DOCUMENT_DTYPE)
    shards: list[tuple[int, int, int]] = []
    first = 0
    while first < len(kept):
        base = int(ends[first - 1]) if first else 0
        end = min(int(np.searchsorted(ends, base + max_bytes, "left")) + 1, len(kept))
        documents["shard"][first:end] = len(shards)
        documents["meta_offset"][first:end] = ends[first:end] - size[first:end] - base + TAR_BLOCK
        shards.append((first, end, int(ends[end - 1]) - base))
        first = end
    documents["meta_bytes"] = kept["meta_bytes"]
    documents["source_offset"] = documents["meta_offset"] + to_source.astype(np.uint64)
    documents["source_tokens"] = kept["source_tokens"]
    documents["target_offset"] = np.where(kept["has_target"], documents["meta_offset"] + to_target.astype(np.uint64), 0)
    documents["target_tokens"] = kept["target_tokens"]
    documents["crc32"] = kept["crc32"]
    return documents, shards


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Write one tar, unless it is there; returns its entry of the index."""
    if job.path.is_file():
        sha256, size = sha256_of(job.path), job.path.stat().st_size
    else:
        with atomic_write(job.path, "wb", unique=True) as file:
            sha256, size = _write_tar(job, file)
    num_documents = sum(len(rows) for _, rows in job.part_rows)
    return {"name": job.path.name, "size_bytes": size, "sha256": sha256, "num_documents": num_documents}


class _HashingFile:
    """Passes writes on, and computes the SHA-256 and number of the bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


def _write_tar(job: ShardJob, raw: IO[bytes]) -> tuple[str, int]:
    """Write the tar of a job; returns its SHA-256 and size. The layout is that of webdataset.TarWriter.

    webdataset itself would import torch: seconds, and 200 MiB in every process.
    """
    file = _HashingFile(raw)
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for number, (meta, source, target) in enumerate(_read_documents(job), start=job.first):
            members = {"json": meta, "source.npy": _to_npy(source)}
            if target is not None:
                members["target.npy"] = _to_npy(target)
            for name, data in members.items():
                member = tarfile.TarInfo(f"{document_key(job.split, number)}.{name}")
                member.size, member.mode = len(data), 0o444
                tar.addfile(member, io.BytesIO(data))
        assert tar.offset == job.size_bytes, "tarfile no longer lays members out as we count"
    return file.hash.hexdigest(), file.size


def _read_documents(job: ShardJob) -> Iterator[tuple[bytes, np.ndarray, np.ndarray | None]]:
    for part, numbers in job.part_rows:
        with np.load(part, allow_pickle=False) as arrays:
            rows, tokens, meta = arrays["rows"], arrays["tokens"], arrays["meta"]
        lengths = rows["source_tokens"].astype(np.int64) + rows["target_tokens"]
        starts, metas = np.cumsum(lengths) - lengths, np.cumsum(rows["meta_bytes"].astype(np.int64))
        for i in numbers:
            middle = int(starts[i]) + int(rows["source_tokens"][i])
            target = tokens[middle : middle + int(rows["target_tokens"][i])] if rows["has_target"][i] else None
            meta_start = int(metas[i]) - int(rows["meta_bytes"][i])
            yield meta[meta_start : metas[i]].tobytes(), tokens[starts[i] : middle], target


def _to_npy(tokens: np.ndarray) -> bytes:
    return make_npy_header(tokens.dtype, len(tokens)) + tokens.tobytes()

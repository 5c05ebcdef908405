"""`transpooler verify`: compares every shard with the index, and decodes every document."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transpooler.common import UserError, progress, read_json, sha256_of
from transpooler.data_pipeline.shards.dataset import (
    DOCUMENTS_NAME,
    FORMAT,
    INDEX_NAME,
    checksum,
    document_key,
    open_rows,
)


def find_split_folders(shards: Path) -> list[Path]:
    """Return the split folders in a preparation's output, or the folder itself if it is one; UserError without any."""
    if (shards / INDEX_NAME).is_file():
        return [shards]
    folders = sorted(path.parent for path in shards.glob(f"*/{INDEX_NAME}"))
    if not folders:
        raise UserError(
            f"{shards}: no shards here (no */{INDEX_NAME}); give the folder that `transpooler prepare` wrote"
        )
    return folders


def find_problems(shards: Path) -> Iterator[str]:
    """Yield every problem, with its file."""
    for folder in find_split_folders(shards):
        index = read_json(folder / INDEX_NAME)
        if index.get("format") != FORMAT:
            yield f"{folder / INDEX_NAME}: format {index.get('format')}, not {FORMAT}"
            continue
        yield from _check_tokenizer(folder, index)
        rows = open_rows(folder, index)
        if isinstance(rows, str):
            yield rows
            continue
        yield from _check_counts(folder, index, rows)
        first = 0
        with progress(f"verify {index['split']} (shards)", len(index["shards"])) as bar:
            for number, shard in enumerate(index["shards"]):
                found = _check_shard(folder, index, number, shard, rows, first)
                if found:
                    yield f"{folder / shard['name']}: {found}"
                first += shard["num_documents"]
                bar.advance()


def _check_tokenizer(folder: Path, index: dict[str, Any]) -> Iterator[str]:
    from transpooler.data_pipeline.tokenizer import has_fingerprint, load_tokenizer

    try:
        tokenizer = load_tokenizer(folder.parent / "tokenizer")
    except UserError as error:
        yield str(error)
        return
    if not has_fingerprint(tokenizer, index["tokenizer_fingerprint"]) or len(tokenizer) != index["vocab_size"]:
        yield f"{folder.parent / 'tokenizer'}: is not the tokenizer of {folder / INDEX_NAME}"


def _check_counts(folder: Path, index: dict[str, Any], rows: np.ndarray) -> Iterator[str]:
    for side in ("source", "target"):
        total = int(rows[f"{side}_tokens"].sum(dtype=np.int64))
        if total != index[f"num_{side}_tokens"]:
            yield f"{folder / DOCUMENTS_NAME}: {total} {side} tokens, not {index[f'num_{side}_tokens']}"
    counts = np.bincount(rows["shard"], minlength=len(index["shards"])).tolist()
    if counts != [shard["num_documents"] for shard in index["shards"]]:
        yield f"{folder / DOCUMENTS_NAME}: documents per shard differ from {INDEX_NAME}"


def _check_shard(
    folder: Path, index: dict[str, Any], number: int, shard: dict[str, Any], rows: np.ndarray, first: int
) -> str | None:
    path = folder / shard["name"]
    try:
        size = path.stat().st_size
        if size != shard["size_bytes"]:
            return f"{size} bytes instead of {shard['size_bytes']}"
        if sha256_of(path) != shard["sha256"]:
            return "checksum differs from the index"
        return _check_content(path, index, number, rows, first)
    except OSError as error:
        return f"cannot read: {error.strerror}"


def _check_content(path: Path, index: dict[str, Any], number: int, rows: np.ndarray, first: int) -> str | None:
    """Compare the documents of a tar, as webdataset's own reader gives them, with the rows of documents.npy."""
    import webdataset

    document, numbers = first, np.flatnonzero(rows["shard"] == number)
    try:
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode():
            key = document_key(index["split"], document)
            if document >= len(rows) or rows["shard"][document] != number or sample["__key__"] != key:
                return f"holds {sample['__key__']} where {key} should be"
            for side in ("source", "target"):
                tokens = sample.get(f"{side}.npy")
                if (0 if tokens is None else len(tokens)) != rows[f"{side}_tokens"][document]:
                    return f"{key}: number of {side} tokens differs from {DOCUMENTS_NAME}"
                if tokens is not None and (
                    tokens.dtype != index["token_dtype"] or (tokens >= index["vocab_size"]).any()
                ):
                    return f"{key}: {side} ids are not of this vocabulary"
            meta = json.dumps(sample["json"], ensure_ascii=False).encode()
            if len(meta) != rows["meta_bytes"][document]:
                return f"{key}: metadata differs from {DOCUMENTS_NAME}"
            if "crc32" in (rows.dtype.names or ()):
                crc32 = checksum(meta, sample["source.npy"], sample.get("target.npy"))
                if crc32 != rows["crc32"][document]:
                    return f"{key}: its CRC-32 differs from {DOCUMENTS_NAME}"
            document += 1
    except Exception as error:  # a damaged tar may raise anything
        return f"cannot be decoded: {error!r}"
    return None if document - first == len(numbers) else f"{document - first} documents instead of {len(numbers)}"

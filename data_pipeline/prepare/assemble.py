"""Parts of a split to its shards: duplicates are found over the whole split, then tars are planned and written."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transpooler.common import UserError, atomic_write, list_some, progress, say, write_json
from transpooler.data_pipeline.config import PrepareConfig
from transpooler.data_pipeline.prepare.executors import Executor
from transpooler.data_pipeline.prepare.inputs import InputGroup
from transpooler.data_pipeline.prepare.tasks import ROW_DTYPE, SHOWN_DROPS, read_array, read_part_info
from transpooler.data_pipeline.prepare.workspace import MADE
from transpooler.data_pipeline.shards.dataset import DOCUMENTS_NAME, FORMAT, INDEX_NAME, token_dtype
from transpooler.data_pipeline.shards.writer import ShardJob, plan_shards, write_shard

_SMALL_BYTES = 32 << 20  # written faster here than handed to others
MAX_LISTED_SOURCES = 1000
LENGTH_EDGES = (0, *(2**i for i in range(4, 21)))
"""Edges of the length histograms, in tokens; the last bin is open."""


def assemble(
    work: Path,
    split: str,
    groups: Sequence[InputGroup],
    config: PrepareConfig,
    executor: Executor,
    *,
    fingerprint: str,
    vocab_size: int,
) -> dict[str, Any]:
    """Write the shards, documents.npy and index.json of a split; returns the index. Shards that exist are kept."""
    folder = work / MADE / split
    parts = [part for group in groups for part in group.parts]
    rows, owners, numbers = _gather(parts)
    keep, dropped, examples = _find_duplicates(parts, rows, owners, numbers, config)
    sources = _count_sources(groups, parts, rows, owners, keep)
    _add_drops(dropped, examples, groups)
    named = _name_drops(examples, dropped)
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
    if not keep.any():
        names = list_some((name for group in groups for name in group.locations), noun="file")
        raise UserError(f"prepare.sources.{split}: no document of {names} can be used; dropped: {counts}")
    dtype = token_dtype(vocab_size)
    documents, cuts = plan_shards(rows[keep], dtype.itemsize, int(config.shard_size_mib * 2**20))
    plan = documents.tobytes() + json.dumps([str(part) for part in parts]).encode()
    _clear_unless(folder, work / f"{split}.plan", hashlib.sha256(plan).hexdigest())
    jobs: list[ShardJob] = []
    for first, end, size in cuts:
        part_rows = _select_part_rows(parts, owners, numbers, keep, first, end)
        jobs.append(ShardJob(folder / f"{split}-{len(jobs):06d}.tar", split, first, part_rows, size))
    shards = _write_shards(split, jobs, executor)
    with atomic_write(folder / DOCUMENTS_NAME, "wb") as file:
        np.save(file, documents)
    source_lengths, target_lengths = rows["source_tokens"][keep], rows["target_tokens"][keep & rows["has_target"]]
    index = {
        "format": FORMAT,
        "split": split,
        "tokenizer_fingerprint": fingerprint,
        "vocab_size": vocab_size,
        "token_dtype": dtype.name,
        "num_documents": int(keep.sum()),
        "num_source_tokens": int(source_lengths.sum(dtype=np.int64)),
        "num_target_tokens": int(target_lengths.sum(dtype=np.int64)),
        "dropped": dict(sorted(dropped.items())),
        "first_dropped": named,
        "source_lengths": summarize_lengths(source_lengths),
        "target_lengths": summarize_lengths(target_lengths),
        "sources": sources,
        "shards": shards,
    }
    write_json(folder / INDEX_NAME, index)
    say(f"prepare {split}: {index['num_documents']} documents kept" + (f"; dropped: {counts}" if counts else ""))
    return index


def _write_shards(split: str, jobs: list[ShardJob], executor: Executor) -> list[dict[str, Any]]:
    small = sum(job.size_bytes for job in jobs) < _SMALL_BYTES
    shards = []
    with progress(f"write {split} (shards)", len(jobs)) as bar:
        for shard in map(write_shard, jobs) if small else executor.run(write_shard, ((job,) for job in jobs)):
            shards.append(shard)
            bar.advance()
    return shards


def summarize_lengths(lengths: np.ndarray) -> dict[str, Any]:
    """Return quantiles and a histogram of token counts."""
    if not len(lengths):
        return {"count": 0}
    quantiles = {f"p{q}": int(np.percentile(lengths, q, method="nearest")) for q in (10, 50, 90, 99)}
    edges = np.array([*LENGTH_EDGES, np.iinfo(np.int64).max])
    histogram = np.histogram(lengths, edges)[0].tolist()
    return {
        "count": len(lengths),
        "min": int(lengths.min()),
        **quantiles,
        "max": int(lengths.max()),
        "mean": round(float(lengths.mean()), 1),
        "histogram_edges": list(LENGTH_EDGES),
        "histogram": histogram,
    }


def _gather(parts: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of all documents, the number of each document's part (int32), and its row in the part (int32)."""
    rows = [np.zeros(0, ROW_DTYPE), *(read_array(part, "rows") for part in parts)]
    owners = np.repeat(np.arange(-1, len(parts), dtype=np.int32), [len(each) for each in rows])
    numbers = np.concatenate([np.arange(len(each), dtype=np.int32) for each in rows])
    return np.concatenate(rows), owners, numbers


def _find_duplicates(
    parts: Sequence[Path], rows: np.ndarray, owners: np.ndarray, numbers: np.ndarray, config: PrepareConfig
) -> tuple[np.ndarray, Counter[str], list[Any]]:
    """Decide which documents stay: of equal ones, the first. Found by sorting, which takes few bytes a document.

    Returns a mask of what stays, counts by reason, and the first few that go as (reason, file, line).
    """
    keep, dropped, examples = np.ones(len(rows), bool), Counter[str](), []
    steps: list[tuple[str, list[np.ndarray]]] = []
    if config.clean.exact_duplicates and len(rows):
        hashes = np.concatenate([read_array(part, "hashes") for part in parts])
        steps.append(("exact_duplicate", [hashes]))
    if config.clean.near_duplicates and len(rows):
        bands = np.concatenate([read_array(part, "bands") for part in parts])
        steps.append(("near_duplicate", [bands[:, i : i + 1] for i in range(bands.shape[1])]))
    for reason, keys in steps:
        repeated = np.zeros(len(rows), bool)
        for key in keys:
            order = np.lexsort(key.T)  # stable, so equal documents keep their order
            ordered = key[order]
            repeated[order[1:]] |= (ordered[1:] == ordered[:-1]).all(axis=1)
        new = np.flatnonzero(repeated & keep)
        keep[new] = False
        dropped[reason] += len(new)
        for i in new[:SHOWN_DROPS]:
            examples.append((reason, _read_file_name(parts[owners[i]], int(numbers[i])), int(rows["line"][i])))
    return keep, +dropped, examples


def _read_file_name(part: Path, number: int) -> str:
    sizes = read_array(part, "rows")["meta_bytes"].astype(np.int64)
    end = int(sizes[: number + 1].sum())
    return json.loads(read_array(part, "meta")[end - int(sizes[number]) : end].tobytes())["file"]


def _select_part_rows(
    parts: Sequence[Path], owners: np.ndarray, numbers: np.ndarray, keep: np.ndarray, first: int, end: int
) -> list[tuple[str, np.ndarray]]:
    chosen = np.flatnonzero(keep)[first:end]
    return [(str(parts[part]), numbers[chosen[owners[chosen] == part]]) for part in np.unique(owners[chosen])]


def _count_sources(
    groups: Sequence[InputGroup], parts: Sequence[Path], rows: np.ndarray, owners: np.ndarray, keep: np.ndarray
) -> list[dict[str, Any]]:
    kept = np.bincount(owners[keep], minlength=len(parts))
    tokens = np.bincount(owners[keep], weights=rows["source_tokens"][keep], minlength=len(parts))
    statistics, start = [], 0
    for group in groups:
        end = start + len(group.parts)
        num_records = sum(sum(read_part_info(part)["records"].values()) for part in group.parts)
        statistics.append(
            {
                "file": list_some(group.locations, 1),
                "num_records": num_records,
                "num_documents": int(kept[start:end].sum()),
                "num_source_tokens": int(tokens[start:end].sum()),
            }
        )
        start = end
    return statistics[:MAX_LISTED_SOURCES]


def _add_drops(dropped: Counter[str], examples: list[Any], groups: Sequence[InputGroup]) -> None:
    """Add what the reading of the inputs has dropped: files, and records of the others."""
    for group in groups:
        dropped.update(group.left_out.values())
        examples += [(reason, location, 0) for location, reason in group.left_out.items()]
        for info in map(read_part_info, group.parts):
            dropped.update(info["dropped"])
            examples += [tuple(item) for item in info["examples"]]


def _name_drops(examples: list[Any], dropped: Counter[str]) -> dict[str, list[str]]:
    """Log the first drops of each reason; returns them as FILE:LINE, or FILE if a whole file is left out."""
    named: dict[str, list[str]] = {}
    for reason, path, line in examples:
        places = named.setdefault(reason, [])
        if len(places) < SHOWN_DROPS:
            places.append(f"{path}:{line}" if line else path)
            say(f"{places[-1]}: dropped: {reason}")
    for reason, places in named.items():
        if dropped[reason] > len(places):
            say(f"{dropped[reason] - len(places)} more are dropped as {reason}")
    return dict(sorted(named.items()))


def _clear_unless(folder: Path, note: Path, plan: str) -> None:
    """Remove the shards of another plan, and note this one. The note of finished shards is not touched: no kill and no
    full disk may spoil it.
    """
    is_noted = note.is_file() and note.read_text() == plan
    if folder.exists() and not is_noted:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not is_noted:
        with atomic_write(note) as file:
            file.write(plan)


def count_shared(parts: Sequence[Path], others: Sequence[Path]) -> int:
    """Count the different documents of `parts` (by their text, ignoring case and spacing) that `others` hold, too."""
    one, other = (
        np.unique(np.concatenate([read_array(part, "hashes") for part in each]), axis=0) for each in (parts, others)
    )
    return len(one) + len(other) - len(np.unique(np.concatenate([one, other]), axis=0))

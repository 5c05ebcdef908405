"""`transpooler prepare`: documents to a tokenizer, WebDataset shards and a report.

Everything is written into `OUTPUT.incomplete` and renamed to `OUTPUT` at the end, so an output folder is either complete
or absent; what a killed run left behind is cleared by the next one. A finished output of the same settings and the same
input files is left alone. Memory does not grow with the corpus.

`workers` is the number of tokenizing threads of the `tokenizers` library (it releases Python's lock); 1 turns them off.
"""

import errno
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from common.files import INCOMPLETE_SUFFIX, fsync_folder, read_json, sha256_of, write_json
from common.progress import progress, say
from data_pipeline.config import SPLITS, PrepareConfig
from data_pipeline.readers import Dropped, RawDocument, read_documents, resolve_paths
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenizer import fingerprint, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPORT_NAME = "report.json"
REPORT_FORMAT = 1
_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 2_000_000
_SHOWN_DROPS = 5  # lines printed for each reason; the rest is only counted

Splits = dict[str, list[Path]]


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Write the shards that `config` describes, or recognise that they are there; returns the report.

    Raises UserError for unusable input, an output that belongs to something else, no permission or a full disk.
    """
    splits: Splits = {
        split: paths
        for split in SPLITS
        if (paths := resolve_paths(getattr(config.sources, split), f"prepare.sources.{split}"))
    }
    if not splits:
        raise UserError("prepare.sources: no input; for example prepare.sources.train=[papers.jsonl]")
    output = Path(config.output).expanduser()
    with _user_errors(output):
        finished = _finished_report(output, config, splits)
        if finished is not None:
            say(f"{output}: already prepared from the same files with the same settings; nothing to do")
            return finished
        with _workspace(output) as work:
            report = _prepare_into(work, config, splits)
    say(f"{output}: ready")
    return report


def _prepare_into(work: Path, config: PrepareConfig, splits: Splits) -> dict[str, Any]:
    _set_threads(config.workers)
    inputs = _describe_inputs(splits)  # before reading: a file that changes meanwhile is noticed by the next run
    tokenizer = _tokenizer(config, splits)
    tokenizer.save_pretrained(work / "tokenizer")
    report = {
        "format": REPORT_FORMAT,
        "settings": _settings(config),
        "inputs": inputs,
        "tokenizer": {"fingerprint": fingerprint(tokenizer), "vocab_size": len(tokenizer)},
        "splits": {
            split: _prepare_split(work / split, split, paths, config, tokenizer) for split, paths in splits.items()
        },
    }
    write_json(work / REPORT_NAME, report)
    return report


def _prepare_split(
    folder: Path, split: str, paths: list[Path], config: PrepareConfig, tokenizer: "PreTrainedTokenizerFast"
) -> dict[str, Any]:
    writer = ShardWriter(
        folder,
        split,
        vocab_size=len(tokenizer),
        fingerprint=fingerprint(tokenizer),
        shard_size_mib=config.shard_size_mib,
    )
    dropped: Counter[str] = Counter()
    records = read_documents(paths, config.source_column, config.target_column, split != "pretrain")
    with progress(f"prepare {split} (documents)") as bar:
        for batch in _batches(_without_dropped(records, dropped)):
            for document, source, target in _encode(batch, tokenizer):
                reason = _length_problem(config, source, target)
                if reason:
                    _drop(Dropped(reason, document.path, document.line), dropped)
                else:
                    writer.add(source, target, _metadata(document))
            bar.advance(len(batch))
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
    if writer.num_documents == 0:
        raise UserError(f"prepare.sources.{split}: no document of {_names(paths)} can be used; dropped: {counts}")
    index = writer.finish(dropped)
    say(f"prepare {split}: {index['num_documents']} documents kept" + (f"; dropped: {counts}" if counts else ""))
    return {
        "documents": index["num_documents"],
        "source_tokens": index["num_source_tokens"],
        "target_tokens": index["num_target_tokens"],
        "shards": len(index["shards"]),
        "dropped": index["dropped"],
    }


def _without_dropped(records: Iterator[RawDocument | Dropped], dropped: Counter[str]) -> Iterator[RawDocument]:
    for record in records:
        if isinstance(record, Dropped):
            _drop(record, dropped)
        else:
            yield record


def _drop(record: Dropped, dropped: Counter[str]) -> None:
    dropped[record.reason] += 1
    if dropped[record.reason] <= _SHOWN_DROPS:
        say(f"{record.path}:{record.line}: dropped: {record.reason}")
    elif dropped[record.reason] == _SHOWN_DROPS + 1:
        say(f"more records are dropped as {record.reason}; counting without naming them")


def _batches(documents: Iterator[RawDocument]) -> Iterator[list[RawDocument]]:
    """Batches bounded in number of documents and of characters, so that memory stays flat."""
    batch: list[RawDocument] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.source)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(
    batch: list[RawDocument], tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[tuple[RawDocument, np.ndarray, np.ndarray | None]]:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # "<mask>" in a document is six characters, not the special token
    texts = [document.source for document in batch]
    with_target = [document for document in batch if document.target is not None]
    encodings = backend.encode_batch_fast(
        texts + [document.target for document in with_target], add_special_tokens=False
    )
    ids = [np.array(encoding.ids, np.int64) for encoding in encodings]
    targets = iter(ids[len(texts) :])
    for document, source in zip(batch, ids, strict=False):
        yield document, source, next(targets) if document.target is not None else None


def _length_problem(config: PrepareConfig, source: np.ndarray, target: np.ndarray | None) -> str | None:
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


def _metadata(document: RawDocument) -> dict[str, Any]:
    meta: dict[str, Any] = {"id": document.id, "file": document.path, "line": document.line}
    return meta if document.target is None else {**meta, "target_text": document.target}


def _tokenizer(config: PrepareConfig, splits: Splits) -> "PreTrainedTokenizerFast":
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    if not splits.keys() & {"train", "pretrain"}:
        raise UserError(
            "prepare.tokenizer.path: give the tokenizer of your model; one can be trained only on train or pretrain sources"
        )
    documents = islice(_training_documents(config, splits), config.tokenizer.max_training_documents)
    with progress("train the tokenizer (documents)") as bar:

        def texts() -> Iterator[str]:
            for document in documents:
                yield document.source
                if document.target is not None:
                    yield document.target
                bar.advance()

        return train_tokenizer(texts(), config.tokenizer.vocab_size)


def _training_documents(config: PrepareConfig, splits: Splits) -> Iterator[RawDocument]:
    """Documents of train and pretrain in turn."""
    streams = (
        read_documents(splits[split], config.source_column, config.target_column, split != "pretrain")
        for split in ("train", "pretrain")
        if split in splits
    )
    for record in chain.from_iterable(zip_longest(*streams)):
        if isinstance(record, RawDocument):
            yield record


def _set_threads(workers: int) -> None:
    """The thread pool of `tokenizers` is sized when it is first used in a process, from this variable."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if workers == 1 else "true"
    if workers > 1:
        os.environ["RAYON_NUM_THREADS"] = str(workers)


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """What decides the output's bytes, beside the input files' content. As JSON gives it back: tuples are lists."""
    settings = asdict(config)
    for name in ("output", "workers", "sources"):
        del settings[name]
    if config.tokenizer.path is not None:
        settings["tokenizer"] = {"fingerprint": fingerprint(load_tokenizer(config.tokenizer.path))}
    return settings


def _describe_inputs(splits: Splits) -> dict[str, list[dict[str, Any]]]:
    return {split: [{**_stamp(path), "sha256": sha256_of(path)} for path in paths] for split, paths in splits.items()}


def _stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path), "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _finished_report(output: Path, config: PrepareConfig, splits: Splits) -> dict[str, Any] | None:
    """The report of a finished output of the same settings and inputs; None if there is no output yet."""
    if not output.exists():
        return None
    if not output.is_dir():
        raise UserError(f"{output}: is a file; choose another prepare.output")
    if not any(output.iterdir()):
        return None
    remedy = "choose another prepare.output or remove this folder"
    if not (output / REPORT_NAME).is_file():
        raise UserError(f"{output}: holds files that `transpooler prepare` did not write; {remedy}")
    report = read_json(output / REPORT_NAME)
    changed = [name for name, value in _settings(config).items() if report.get("settings", {}).get(name) != value]
    if report.get("format") != REPORT_FORMAT or changed:
        raise UserError(f"{output}: was prepared with other settings ({', '.join(changed) or 'format'}); {remedy}")
    if not _same_inputs(report["inputs"], splits):
        raise UserError(f"{output}: was prepared from other input files, or they have changed; {remedy}")
    return report


def _same_inputs(recorded: dict[str, list[dict[str, Any]]], splits: Splits) -> bool:
    """Same paths and sizes, and either untouched since or of the same content."""
    if {split: [item["path"] for item in items] for split, items in recorded.items()} != {
        split: [str(path) for path in paths] for split, paths in splits.items()
    }:
        return False
    for item, path in (
        (item, path) for split in splits for item, path in zip(recorded[split], splits[split], strict=True)
    ):
        stamp = _stamp(path)
        if stamp["size_bytes"] != item["size_bytes"]:
            return False
        if stamp["mtime_ns"] != item["mtime_ns"] and sha256_of(path) != item["sha256"]:
            return False
    return True


@contextmanager
def _workspace(output: Path) -> Iterator[Path]:
    """An empty folder beside `output` that takes its place when the block succeeds, and goes away when it does not."""
    work = output.with_name(output.name + INCOMPLETE_SUFFIX)
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{output}: another `transpooler prepare` is writing it; wait for it to end") from None
        for leftover in work.iterdir():  # of a run that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        try:
            yield work
            os.replace(work, output)
            fsync_folder(output.parent)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    finally:
        os.close(lock)


@contextmanager
def _user_errors(output: Path) -> Iterator[None]:
    """Failures of the file system while writing are the user's to mend."""
    try:
        yield
    except OSError as error:
        with suppress(TypeError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"{output}: the disk is full; free space or choose another prepare.output") from error
        raise UserError(f"{output}: cannot write: {error}; choose another prepare.output") from error


def _names(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more files" if len(paths) > 3 else "")

"""`transpooler prepare`: documents to a tokenizer, WebDataset shards and a report.

Everything is written into `OUTPUT.incomplete` and renamed to `OUTPUT` at the end, so an output folder is either
complete or absent; what a killed run left behind is cleared by the next one. A finished output of the same settings and
the same input files is left alone. Memory does not grow with the corpus.

`workers` is the number of tokenizing threads of the `tokenizers` library (it releases Python's lock); 1 turns them off.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from common.files import write_json
from common.progress import progress, say
from data_pipeline.config import SPLITS, PrepareConfig
from data_pipeline.output import (
    REPORT_FORMAT,
    REPORT_NAME,
    Splits,
    describe_inputs,
    finished_report,
    user_errors,
    workspace,
)
from data_pipeline.readers import Dropped, RawDocument, read_documents, resolve_paths
from data_pipeline.shard_writer import ShardWriter
from data_pipeline.tokenizer import fingerprint, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 2_000_000
_SHOWN_DROPS = 5  # lines printed for each reason; the rest is only counted


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
    with user_errors(output):
        finished = finished_report(output, _settings(config), splits)
        if finished is not None:
            say(f"{output}: already prepared from the same files with the same settings; nothing to do")
            return finished
        with workspace(output) as work:
            report = _prepare_into(work, config, splits)
    say(f"{output}: ready")
    return report


def _prepare_into(work: Path, config: PrepareConfig, splits: Splits) -> dict[str, Any]:
    _set_threads(config.workers)
    inputs = describe_inputs(splits)  # before reading: a file that changes meanwhile is noticed by the next run
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
            "prepare.tokenizer.path: give the tokenizer of your model; one can be trained only on train or pretrain "
            "sources"
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


def _names(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more files" if len(paths) > 3 else "")

"""The documents of demo and studies: the user's own files, or what is made."""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from transpooler.common import UserError, atomic_write, say

if TYPE_CHECKING:
    from transpooler.benchmarks.quality.study import Study

PAIR_SPLITS = ("train", "validation", "test")
SUFFIXES = (".jsonl", ".jsonl.gz")


def own_sources(data: Path, folder: Path) -> dict[str, Path]:
    """File of each split: train, validation, test and pretrain. What has to be written goes into `folder`."""
    if data.is_dir():
        return _folder_sources(data)
    if not data.is_file():
        raise UserError(f"--data {data}: no such file or folder")
    if not data.name.endswith(SUFFIXES):
        raise UserError(
            f"--data {data}: give a .jsonl or .jsonl.gz file of article/abstract pairs, or a folder of them"
        )
    return split_file(data, folder)


def study_sources(study: "Study", data: Path | None, folder: Path) -> dict[str, Path]:
    """File of each split of the documents that a study's `corpus` names; what is made goes into `folder`."""
    from transpooler.benchmarks.quality.needles import DOCUMENTS, write_needles
    from transpooler.benchmarks.quality.notes import NOTES
    from transpooler.benchmarks.quality.tasks import TASKS, write_task
    from transpooler.launch.demo.documentation import write_documentation

    corpus = study.corpus
    if corpus is None:
        if data is None:
            raise UserError("this study reads your documents; give --data papers.jsonl, or --shards")
        return own_sources(data, folder)
    if corpus == "needles_in_text" or corpus in TASKS:
        texts = write_documentation(folder) if data is None else own_sources(data, folder)
        if corpus not in TASKS:
            return write_needles(folder / "needles", texts=texts)
        documents = DOCUMENTS | {"train": study.corpus_documents}
        return write_task(corpus, folder / corpus, texts, lengths=study.corpus_words, documents=documents)
    if corpus == "notes":
        return write_needles(folder / "notes", texts=write_documentation(folder), words=NOTES)
    return write_needles(folder, sentences=corpus == "needles_in_sentences")


def split_file(data: Path, folder: Path) -> dict[str, Path]:
    """Split a file of pairs 80/10/10 by hash of the article, so that a repeated article cannot cross splits.

    Lines that are no pairs go to train, where preparation counts and reports them. Pretraining reads train's articles.
    """
    counts: Counter[str] = Counter()
    paths = {split: folder / f"{split}.jsonl" for split in PAIR_SPLITS}
    with ExitStack() as stack:
        files = {split: stack.enter_context(atomic_write(path, "wb")) for split, path in paths.items()}
        for line in _read_lines(data):
            if line.strip():
                split = split_of(line)
                counts[split] += 1
                files[split].write(line.rstrip(b"\r\n") + b"\n")
        if empty := [split for split in PAIR_SPLITS if not counts[split]]:
            total = sum(counts.values())
            raise UserError(
                f"--data {data}: {total} documents leave none for {', '.join(empty)}; give at least about 50"
            )
    say("split by hash of the article: " + ", ".join(f"{split} {counts[split]}" for split in PAIR_SPLITS))
    return {**paths, "pretrain": paths["train"]}


def split_of(line: bytes) -> str:
    """train, validation or test (8:1:1) for one JSON line."""
    from transpooler.data_pipeline.sources.columns import SOURCE_KEYS

    try:
        record = json.loads(line)
        article = next(record[key] for key in SOURCE_KEYS if key in record)
    except (ValueError, TypeError, StopIteration):  # not JSON, no mapping, no article
        return "train"
    digest = hashlib.sha256(json.dumps(article).encode()).digest()
    return {8: "validation", 9: "test"}.get(int.from_bytes(digest[:8], "big") % 10, "train")


def _folder_sources(data: Path) -> dict[str, Path]:
    found = {
        split: path
        for split in (*PAIR_SPLITS, "pretrain")
        for suffix in SUFFIXES
        if (path := data / f"{split}{suffix}").is_file()
    }
    if missing := [split for split in PAIR_SPLITS if split not in found]:
        raise UserError(f"--data {data}: lacks {missing[0]}.jsonl (or .jsonl.gz); it needs train, validation and test")
    return {"pretrain": found["train"], **found}


def _read_lines(data: Path) -> Iterator[bytes]:
    try:
        with gzip.open(data) if data.name.endswith(".gz") else open(data, "rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"--data {data}: damaged gzip file ({error}); copy it again") from None
    except OSError as error:
        raise UserError(f"--data {data}: cannot read: {error.strerror}") from None

"""`transpooler verify`: compares an output with its manifest and every shard with its index; decodes every document."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transpooler.common import UserError, progress, say, sha256_of
from transpooler.data_pipeline.shards.dataset import DOCUMENTS_NAME, INDEX_NAME, ShardDataset
from transpooler.data_pipeline.shards.manifest import REPORT_NAME, compare_files, read_report
from transpooler.data_pipeline.shards.remote import Cache, fetch_tokenizer, join
from transpooler.data_pipeline.shards.store import FileStore

_RETRIES = 2


@dataclass(frozen=True)
class Output:
    """What a preparation wrote, local or remote."""

    store: FileStore
    files: dict[str, int]
    """Every file and its size in bytes."""
    splits: list[str]
    """Those that are looked at."""
    is_split: bool
    """Whether the one split was given, instead of the whole output."""
    cache: Cache | None
    """Holds what is fetched of a remote output."""

    def open(self, split: str, *, check_sizes: bool = True) -> ShardDataset:
        """Open a split."""
        return ShardDataset(join(self.store.location, split), self.cache, check_sizes=check_sizes)


@contextmanager
def open_shards(shards: str | Path) -> Iterator[Output]:
    """Find the splits in a preparation's output, or in the split that is given; UserError: there is none.

    What is fetched of a remote output goes into a temporary folder.
    """
    store = FileStore(shards)
    files = store.list_files()
    if is_split := INDEX_NAME in files:
        if store.folder is not None and store.folder.name in ("", ".."):
            store = FileStore(store.folder.resolve())
        parent, _, split = store.location.rpartition("/")
        store, splits = FileStore(parent or "."), [split]
        files = store.list_files()
    else:
        splits = sorted(name.removesuffix(f"/{INDEX_NAME}") for name in files if _is_index(name))
    if not splits and REPORT_NAME not in files:
        raise UserError(
            f"{shards}: no shards here (no */{INDEX_NAME}); give the folder that `transpooler prepare` wrote"
        )
    if store.folder is not None:
        yield Output(store, files, splits, is_split, None)
        return
    with tempfile.TemporaryDirectory(prefix="transpooler-") as folder:
        yield Output(store, files, splits, is_split, Cache(folder=Path(folder), max_bytes=1 << 62, retries=_RETRIES))


def find_problems(shards: str | Path) -> Iterator[str]:
    """Yield every problem, with its file. Logs what could not be compared."""
    with open_shards(shards) as output:
        read = set[str]()
        for split in output.splits:
            yield from _check_split(output, split, read)
        report = read_report(output.store)
        top = f"{output.splits[0]}/" if output.is_split else ""
        if report is not None and "files" in report:
            yield from compare_files(output.store, report, output.files, read, top)
        elif report is not None or output.is_split:
            say(
                f"{output.store.location}: no list of files in {REPORT_NAME} (an earlier version wrote none): splits "
                "and their shards are compared with index.json; other files, and whether some are missing, cannot be"
            )
        else:
            yield f"{output.store.location}/{REPORT_NAME}: missing"


def _is_index(name: str) -> bool:
    return name.count("/") == 1 and name.endswith(f"/{INDEX_NAME}") and not name.startswith(".")


def _check_split(output: Output, split: str, read: set[str]) -> Iterator[str]:
    """Yield the problems of one split; adds the names of the shards that were compared to `read`."""
    try:
        dataset = output.open(split, check_sizes=False)
    except UserError as error:
        yield str(error)
        return
    yield from _check_tokenizer(output, dataset)
    yield from _check_counts(dataset)
    first = 0
    with progress(f"verify {split} (shards)", len(dataset.index["shards"])) as bar:
        for number, shard in enumerate(dataset.index["shards"]):
            read.add(f"{split}/{shard['name']}")
            found = _check_shard(dataset, number, first)
            if found:
                named = found.startswith(str(dataset.folder))
                yield found if named else f"{join(dataset.folder, shard['name'])}: {found}"
            first += shard["num_documents"]
            bar.advance()


def _check_tokenizer(output: Output, dataset: ShardDataset) -> Iterator[str]:
    from transpooler.data_pipeline.tokenizer import has_fingerprint, load_tokenizer

    try:
        tokenizer = load_tokenizer(fetch_tokenizer(output.store.location, output.cache))
    except UserError as error:
        yield str(error)
        return
    index = dataset.index
    if not has_fingerprint(tokenizer, index["tokenizer_fingerprint"]) or len(tokenizer) != index["vocab_size"]:
        yield f"{join(output.store.location, 'tokenizer')}: is not the tokenizer of {join(dataset.folder, INDEX_NAME)}"


def _check_counts(dataset: ShardDataset) -> Iterator[str]:
    rows, index, path = dataset.rows, dataset.index, join(dataset.folder, DOCUMENTS_NAME)
    for side in ("source", "target"):
        total = int(rows[f"{side}_tokens"].sum(dtype=np.int64))
        if total != index[f"num_{side}_tokens"]:
            yield f"{path}: {total} {side} tokens, not {index[f'num_{side}_tokens']}"
    shards = rows["shard"].astype(np.int64)
    is_sorted = (np.diff(shards) >= 0).all() and shards.max(initial=0) < len(index["shards"])
    if not is_sorted or np.bincount(shards, minlength=len(index["shards"])).tolist() != dataset.shard_documents:
        yield f"{path}: documents per shard differ from {INDEX_NAME}"


def _check_shard(dataset: ShardDataset, number: int, first: int) -> str | None:
    """Compare one shard with the index, and its documents; removes it if it had to be fetched."""
    shard = dataset.index["shards"][number]
    try:
        path = dataset.fetch(number)
        try:
            if (size := path.stat().st_size) != shard["size_bytes"]:
                return f"{size} bytes instead of {shard['size_bytes']}"
            if sha256_of(path) != shard["sha256"]:
                return "checksum differs from the index"
            return _check_content(path, dataset, first, first + shard["num_documents"])
        finally:
            if dataset.remote_bytes:
                path.unlink(missing_ok=True)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot read: {error.strerror}"


def _check_content(path: Path, dataset: ShardDataset, first: int, end: int) -> str | None:
    """Compare the documents of a tar, as webdataset's own reader gives them, with those that the dataset reads."""
    import webdataset

    number = first
    with open(path, "rb") as file:
        url = f"/dev/fd/{file.fileno()}"  # webdataset takes # ? { :: in the path's own name for something else
        try:
            for sample in webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode():
                if number == end or sample["__key__"] != dataset.key(number):
                    return f"holds {sample['__key__']} where {dataset.key(number)} should be"
                document = dataset.read(number)
                for name, tokens in (("source.npy", document.source), ("target.npy", document.target)):
                    if (tokens is None) != (name not in sample) or (
                        tokens is not None and not np.array_equal(sample[name], tokens)
                    ):
                        return f"{document.key}: {name} is not what {DOCUMENTS_NAME} points to"
                if sample["json"] != document.meta:
                    return f"{document.key}: metadata is not what {DOCUMENTS_NAME} points to"
                number += 1
        except UserError as error:
            return str(error)
        except Exception as error:  # a damaged tar may raise anything
            return f"cannot be decoded: {error!r}"
    return None if number == end else f"{number - first} documents instead of {end - first}"

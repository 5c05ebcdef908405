"""Shards in a real S3 bucket: the same batches as from disk, a bounded cache, damage and failures named."""

import fcntl
import itertools
import json
import random
import threading
from pathlib import Path

import pytest
import torch

from tests.s3_server import s3_server  # noqa: F401
from transpooler.common import UserError
from transpooler.data_pipeline.config import DataConfig, PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.loading.loader import Loader
from transpooler.data_pipeline.order.corpus import make_cache
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.dataset import DamagedShardError, ShardDataset
from transpooler.data_pipeline.shards.remote import Cache, _list_files, fetch_folder

NUM_DOCUMENTS = 60


@pytest.fixture(scope="module")
def local(shards, tmp_path_factory) -> Path:
    """About ten shards of a few KiB, with the tokenizer of the common test corpus."""
    folder, draw = tmp_path_factory.mktemp("many"), random.Random(0)
    rows = []
    for number in range(NUM_DOCUMENTS):
        words = draw.choices(["alpha", "beta", "gamma", "delta"], k=draw.randint(30, 400))
        rows.append({"id": number, "article": " ".join(words), "abstract": " ".join(words[:9])})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(
        PrepareConfig(
            output=str(folder / "shards"),
            sources=SourcesConfig(train=(str(folder / "train.jsonl"),)),
            tokenizer=TokenizerConfig(path=str(shards / "tokenizer")),
            shard_size_mib=20 / 1024,
            workers=1,
        )
    )
    return folder / "shards"


@pytest.fixture(scope="module")
def bucket(local, s3_server) -> str:  # noqa: F811
    import s3fs

    s3fs.S3FileSystem().put(str(local), f"{s3_server}/many", recursive=True)
    return f"{s3_server}/many"


def config(shards: str | Path, cache: Path, **values) -> DataConfig:
    values = {"max_source_tokens": 512, "max_target_tokens": 32, "batch_size": 6, "fetch_retries": 1} | values
    return DataConfig(shards=str(shards), cache=str(cache), **values)


def take(data: DataConfig, count: int, rank: int = 0, world_size: int = 1) -> list:
    loader = Loader(data, split="train", seed=1, rank=rank, world_size=world_size, micro_batch_size=2)
    stream = loader.steps(0)
    steps = list(itertools.islice(stream, count))
    stream.close()
    assert not any(step.error for step in steps)
    return steps


def cached_bytes(cache: Path) -> int:
    with open(cache / "lock", "w") as lock:  # as those who evict and claim: else the sum would mix before and after
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(size for _, size, _ in _list_files(cache))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_s3_equal_those_from_disk(local, bucket, tmp_path, workers):
    want = take(config(local, tmp_path), 12)
    got = take(config(bucket, tmp_path, workers=workers), 12)
    for left, right in zip(want, got, strict=True):
        assert left.keys == right.keys
        for a, b in zip(left.micro_batches, right.micro_batches, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert not list(tmp_path.glob("*/*.part"))


def test_the_cache_stays_below_its_bound(local, bucket, tmp_path):
    sizes = [path.stat().st_size for path in (local / "train").glob("*.tar")]
    assert len(sizes) >= 8
    bound = 5 * max(sizes)
    data = config(bucket, tmp_path, shuffle_shards=2, cache_gib=bound / 2**30)
    largest, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            largest[0] = max(largest[0], cached_bytes(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    steps = take(data, 3 * 10)
    stop.set()
    watcher.join()
    assert len({key for step in steps for key in step.keys}) == NUM_DOCUMENTS
    assert max(sizes) < largest[0] <= bound
    with pytest.raises(UserError, match=r"data.cache_gib is .* set data.shuffle_shards to fewer"):
        take(config(bucket, tmp_path, cache_gib=bound / 2**30), 1)


def test_a_shard_that_is_finished_while_list_files_are_read_counts_once(tmp_path, monkeypatch):
    part = tmp_path / "split" / "00000.tar.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 10)
    real = Path.glob

    def glob(folder: Path, pattern: str):
        found = list(real(folder, pattern))
        if part.is_file():
            part.rename(part.with_suffix(""))  # between the looks for .part and for .tar
        return found

    monkeypatch.setattr(Path, "glob", glob)
    assert [size for _, size, _ in _list_files(tmp_path)] == [10]


def test_several_processes_share_a_cache(bucket, tmp_path):
    """Threads with caches of their own objects stand for processes: the locks are those of files."""
    data = config(bucket, tmp_path)
    datasets = [ShardDataset(f"{bucket}/train", make_cache(data)) for _ in range(4)]
    sums: list[list[int]] = [[] for _ in datasets]

    def read(which: int) -> None:
        sums[which] = [int(datasets[which].read(number).source.sum()) for number in range(NUM_DOCUMENTS)]

    threads = [threading.Thread(target=read, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums[0]
    assert all(each == sums[0] for each in sums)


def test_what_a_killed_process_left_is_taken_over(bucket, tmp_path):
    dataset = ShardDataset(f"{bucket}/train", make_cache(config(bucket, tmp_path)))
    (folder,) = tmp_path.glob("*/documents.npy")
    part = folder.parent / "train-000000.tar.part"
    part.write_bytes(b"half of a shard")
    assert dataset.read(0).meta["id"] == "0"
    assert not part.exists()


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_damaged_remote_shard_is_named(local, bucket, tmp_path, damage):
    import s3fs

    files, url = s3fs.S3FileSystem(), f"{bucket}/train/train-000001.tar"
    good = (local / "train/train-000001.tar").read_bytes()
    bad = bytearray(good if damage == "flipped" else good[:-512])
    bad[3000] ^= 1
    files.rm(url) if damage == "missing" else files.pipe(url, bytes(bad))
    try:
        dataset = ShardDataset(f"{bucket}/train", make_cache(config(bucket, tmp_path)))
        number = dataset.shard_documents[0]
        reason = {"flipped": "its SHA-256 is not", "short": "bytes instead of", "missing": "no such file"}[damage]
        with pytest.raises(DamagedShardError, match=f"many/train/train-000001.tar: damaged shard: .*{reason}"):
            dataset.read(number)
        assert dataset.read(0).meta["id"] == "0"
        assert not list(tmp_path.glob("*/train-000001*"))
    finally:
        files.pipe(url, good)
    assert dataset.read(number).meta["id"] == str(number)


def test_no_server_is_a_mistake_with_one_line(tmp_path):
    cache = Cache(folder=tmp_path, max_bytes=2**30, retries=1)
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/tokenizer.json: cannot fetch \(2 attempts\)"):
        fetch_folder("http://127.0.0.1:9", cache, ("tokenizer.json",))

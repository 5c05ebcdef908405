"""Remote shards without a server: wrong addresses, and transfers that fail half-way."""

import io
import shutil

import fsspec
import pytest

from transpooler.common import UserError
from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.order.corpus import open_corpora
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.data_pipeline.shards.remote import Cache, fetch_folder


def test_a_misspelt_protocol_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("a wrong address was tried again"))
    config = DataConfig(shards="s4://bucket/shards", cache=str(tmp_path))
    with pytest.raises(UserError, match=r"^s4://bucket/shards/train/index.json: unknown kind of URL .*; use s3://"):
        open_corpora(config, "train")


class Breaking(io.BytesIO):
    """A remote file whose connection breaks in the first attempt, after some bytes."""

    failed = False

    def read(self, size: int | None = -1) -> bytes:
        if not Breaking.failed and self.tell():
            Breaking.failed = True
            raise ConnectionResetError("connection reset")
        return super().read(4 if not Breaking.failed else size)


def test_a_broken_transfer_is_tried_again_from_its_beginning(tmp_path, monkeypatch):
    files = fsspec.filesystem("memory")
    files.pipe({"/tokenizers/a/tokenizer.json": b"{}", "/tokenizers/a/added_tokens.json": b"0123456789"})
    monkeypatch.setattr(
        "fsspec.implementations.memory.MemoryFileSystem._open", lambda *_, **__: Breaking(b"0123456789")
    )
    monkeypatch.setattr("time.sleep", lambda _: None)
    cache = Cache(folder=tmp_path / "cache", max_bytes=2**20, retries=1)
    folder = fetch_folder("memory://tokenizers/a", cache, ("tokenizer.json", "added_tokens.json"))
    assert Breaking.failed
    assert (folder / "added_tokens.json").read_bytes() == b"0123456789"
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "added_tokens.json"}


def test_a_cache_that_is_wiped_is_filled_again_and_one_that_cannot_be_made_is_named(shards, tmp_path):
    fsspec.filesystem("memory").put(str(shards), "/wiped", recursive=True)
    cache = Cache(folder=tmp_path / "cache", max_bytes=2**30, retries=1)
    dataset = ShardDataset("memory://wiped/train", cache)
    first = dataset.read(0).source.tolist()
    shutil.rmtree(tmp_path / "cache")
    assert dataset.read(0).source.tolist() == first
    (tmp_path / "file").touch()
    config = DataConfig(shards="memory://wiped", cache=str(tmp_path / "file/cache"))
    with pytest.raises(UserError, match=r"file/cache: cannot make this folder: Not a directory; set data.cache"):
        open_corpora(config, "train")

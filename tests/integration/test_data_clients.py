"""Our tars in other people's hands: unmodified `webdataset` (with its shuffling, too) and `datasets`."""

import numpy as np
import pytest
import webdataset

from transpooler.data_pipeline.shards.dataset import Document, ShardDataset


@pytest.fixture
def documents(shards) -> list[Document]:
    dataset = ShardDataset(shards / "train")
    return [dataset.read(number) for number in range(len(dataset))]


def assert_same(sample: dict, document: Document) -> None:
    assert sample["__key__"] == document.key
    np.testing.assert_array_equal(sample["source.npy"], document.source)
    np.testing.assert_array_equal(sample["target.npy"], document.target)
    assert sample["json"] == document.meta


def test_webdataset_reads_them(shards, documents):
    url = str(shards / "train/train-{000000..000000}.tar")
    plain = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    for sample, document in zip(plain, documents, strict=True):
        assert_same(sample, document)
    shuffled = list(webdataset.WebDataset(url, shardshuffle=1, seed=1).shuffle(100).decode())
    assert sorted(sample["__key__"] for sample in shuffled) == [document.key for document in documents]


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_them(shards, documents, tmp_path, streaming):
    from datasets import load_dataset

    files = {"train": [str(path) for path in sorted((shards / "train").glob("*.tar"))]}
    loaded = load_dataset("webdataset", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path))
    for sample, document in zip(loaded, documents, strict=True):
        assert_same(sample, document)

"""The corpora of a run and the order in which it reads them. Needs the configuration, but no tokenizer and no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transpooler.common import UserError, local_path
from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.limits import cut_length
from transpooler.data_pipeline.order.mixture import BatchOrder, Chunk
from transpooler.data_pipeline.order.order import CorpusOrder, Cut
from transpooler.data_pipeline.order.permutation import key_of
from transpooler.data_pipeline.shards.dataset import INDEX_NAME, ShardDataset
from transpooler.data_pipeline.shards.remote import Cache, fetch_tokenizer, join
from transpooler.data_pipeline.sources.locations import is_remote


@dataclass(frozen=True)
class Corpus:
    """One split folder; `prefix` stands before its keys in a mixture."""

    dataset: ShardDataset
    prefix: str = ""
    weight: float = 1.0

    def key(self, number: int) -> str:
        """Key of a document, unique over all corpora of the run."""
        return self.prefix + self.dataset.key(number)


def make_cache(config: DataConfig) -> Cache:
    """Return the cache of shards behind URLs."""
    return Cache(folder=local_path(config.cache), max_bytes=int(config.cache_gib * 2**30), retries=config.fetch_retries)


def tokenizer_folder(config: DataConfig) -> Path:
    """Return the local folder of the shards' tokenizer; fetches it first if the shards are remote."""
    return fetch_tokenizer(config.shards, make_cache(config))


def open_dataset(config: DataConfig, shards: str, split: str) -> ShardDataset:
    """Open one split, local or remote."""
    check_sizes = not config.max_damaged_documents
    return ShardDataset(join(shards, split), make_cache(config), check_sizes=check_sizes)


def split_exists(config: DataConfig, shards: str, split: str) -> bool:
    """Whether there are shards of this split."""
    index = join(join(shards, split), INDEX_NAME)
    return make_cache(config).exists(str(index)) if is_remote(index) else Path(index).is_file()


def open_corpora(config: DataConfig, split: str) -> list[Corpus]:
    """Open the corpora of a split: those of the mixture for training, data.shards otherwise.

    Raises UserError if a corpus is missing, damaged, of another tokenizer, or too large for the cache.
    """
    if split != config.train_split or not config.mixture:
        corpora = [Corpus(open_dataset(config, config.shards, split))]
    else:
        corpora = [
            Corpus(open_dataset(config, entry.shards, entry.split or split), f"{entry.name}/", entry.weight)
            for entry in config.mixture
        ]
    tokenizers = {corpus.dataset.index["tokenizer_fingerprint"] for corpus in corpora}
    if len(tokenizers) > 1:
        raise UserError("data.mixture: the corpora have different tokenizers; prepare them with the same one")
    _check_cache(config, corpora)
    return corpora


def batch_order(config: DataConfig, corpora: list[Corpus], seed: int) -> BatchOrder:
    """Return the order in which a run reads `corpora`."""
    documents = None
    if config.batch_tokens is None:
        documents = 1 if config.mixture else config.batch_size
    cut = Cut(
        documents=documents,
        tokens=config.micro_batch_tokens or config.max_source_tokens,
        width=config.length_bucket_width,
    )
    orders = [
        CorpusOrder(
            cut_lengths(corpus.dataset, config),
            cut,
            seed=key_of(seed, number),
            shard_documents=corpus.dataset.shard_documents,
            shuffle_shards=config.shuffle_shards,
            short_first_epochs=config.short_first_epochs,
        )
        for number, corpus in enumerate(corpora)
    ]
    return BatchOrder(orders, [corpus.weight for corpus in corpora], config.chunks_per_step)


def cut_lengths(dataset: ShardDataset, config: DataConfig) -> np.ndarray:
    """Return the length of each document's source as the loader will cut it; uint16 if that suffices, else uint32."""
    limit = config.max_source_tokens
    dtype = np.uint16 if limit < 1 << 16 else np.uint32
    return cut_length(dataset.source_lengths, limit, len(config.source_prefix_ids)).astype(dtype)


def list_keys(corpora: list[Corpus], chunks: list[Chunk]) -> list[str]:
    """Return the keys of the documents of a global batch, in the order in which the run's ledger hashes them."""
    return [corpora[chunk.corpus].key(int(number)) for chunk in chunks for number in chunk.numbers]


def list_batches(config: DataConfig, seed: int, start: int, count: int) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (step, epoch, keys) of `count` global batches after `start` steps, without reading a document.

    Steps are counted as in metrics.jsonl, where the first batch of a run is step 1.
    """
    corpora = open_corpora(config, config.train_split)
    order = batch_order(config, corpora, seed)
    for step in range(start, start + count):
        yield step + 1, order.epoch(step), list_keys(corpora, order.batch(step))


def _check_cache(config: DataConfig, corpora: list[Corpus]) -> None:
    """Raise UserError if the cache is too small, which would otherwise show as slowness only."""
    needed = 0
    for corpus in corpora:
        sizes = sorted(corpus.dataset.remote_bytes, reverse=True)
        # a batch between two groups needs the shards of both
        needed += sum(sizes if config.shuffle_shards is None else sizes[: 2 * config.shuffle_shards])
    if needed > config.cache_gib * 2**30:
        raise UserError(
            f"data.cache_gib is {config.cache_gib}, but this order reads from {needed / 2**30:.3f} GiB of remote "
            "shards at a time; set data.shuffle_shards to fewer, or raise data.cache_gib"
        )

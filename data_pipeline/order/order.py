"""Which documents form which global batch: pure functions of (lengths, shards, settings, seed, step).

Ranks, workers and the past play no part, so the loader's state is the step, and any step is computed alone at once.

A corpus is sorted once, by length (within groups of shards, where locality is wanted), and cut into *classes* of like
length; that table, 4 bytes a document, serves all epochs. A *chunk* is a few documents of one class. An epoch visits
the groups in a random order, the chunks of a group in a random order, and fills the chunks of a class with its
documents in a random order: each document once. "A random order" is a keyed permutation computed place by place (a
Feistel network), so nothing is stored or shuffled, and no library's random generator decides what a run reads.

A chunk is a whole global batch (fixed number of documents), or a micro batch of at most so many tokens, padding
included; then a global batch is a fixed number of micro batches, whatever their lengths and the number of ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transpooler.data_pipeline.order.permutation import key_of, permute

MIN_CLASS_CHUNKS = 8
"""A class is made wider than asked until it fills so many chunks: else the same documents would meet in every epoch."""

_SHARDS, _GROUPS, _CHUNKS, _DOCUMENTS = range(4)  # what a permutation is for: part of its key


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a corpus is cut into chunks: `documents` each, or as many as fit into `tokens` with padding."""

    documents: int | None = None
    tokens: int | None = None
    width: float | None = None
    """Lengths in a class differ by at most this share (where MIN_CLASS_CHUNKS allows it); None = one class."""

    def chunk_size(self, longest: int) -> int:
        """Documents in a chunk whose longest has `longest` tokens."""
        if self.documents is not None:
            return self.documents
        assert self.tokens is not None
        return max(1, self.tokens // max(1, longest))


def length_classes(lengths: np.ndarray, cut: Cut) -> list[tuple[int, int, int]]:
    """(start, stop, chunk size) of the classes of ascending `lengths`, themselves ascending.

    With a fixed number of documents only the shortest class may have a chunk that is not full.
    """
    classes: list[tuple[int, int, int]] = []
    stop = len(lengths)
    while stop:
        longest = int(lengths[stop - 1])
        size = cut.chunk_size(longest)
        start = 0
        if cut.width is not None:
            shortest = math.ceil(longest / (1 + cut.width))
            start = int(np.searchsorted(lengths[:stop], lengths.dtype.type(shortest)))
            start = min(start, stop - MIN_CLASS_CHUNKS * size)
            if cut.documents is not None:
                start = stop - -(-(stop - start) // size) * size
        if start < size:  # too few for a class of their own
            start = 0
        classes.append((start, stop, size))
        stop = start
    return classes[::-1]


class CorpusOrder:
    """The chunks of one corpus, epoch after epoch.

    `lengths`: tokens of each document as the loader will cut it; `shard_documents`: documents of each shard, in corpus
    order. `shuffle_shards` documents train near each other only if their shards are in one group of so many (None: all
    in one). Epochs before `short_first_epochs` visit the chunks from short to long.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        cut: Cut,
        *,
        seed: int,
        shard_documents: Sequence[int] | None = None,
        shuffle_shards: int | None = None,
        short_first_epochs: int = 0,
    ) -> None:
        self.seed, self.short_first_epochs = seed, short_first_epochs
        self.num_documents = len(lengths)
        shards = np.array([len(lengths)] if shard_documents is None else shard_documents, np.int64)
        classes: list[tuple[int, int, int]] = []
        group_classes, done = [0], 0
        self._documents = np.empty(len(lengths), np.uint32)
        for numbers in _groups(shards, shuffle_shards, seed):
            own = lengths[numbers]
            by_length = _ascending(own)
            np.take(numbers, by_length, out=self._documents[done : done + len(numbers)], mode="clip")
            classes += [(done + a, done + b, size) for a, b, size in length_classes(own[by_length], cut)]
            group_classes.append(len(classes))
            done += len(numbers)
        table = np.array(classes, np.int64).reshape(-1, 3)
        self._start, self._count, self._size = table[:, 0], table[:, 1] - table[:, 0], table[:, 2]
        self._first_chunk = np.concatenate([[0], np.cumsum(-(-self._count // self._size))])
        self._group_first = self._first_chunk[group_classes]
        self.num_chunks = int(self._first_chunk[-1])
        """Chunks of an epoch; the same number in every epoch."""
        self._epoch, self._group_order, self._group_ends = -1, np.empty(0), np.empty(0)

    @property
    def nbytes(self) -> int:
        """Memory of the plan."""
        tables = (self._documents, self._start, self._count, self._size, self._first_chunk, self._group_first)
        return sum(table.nbytes for table in tables)

    def chunk(self, epoch: int, position: int) -> np.ndarray:
        """Document numbers (int64) of chunk `position` of an epoch."""
        order, ends = self._groups_of(epoch)
        place = int(np.searchsorted(ends, position, side="right"))
        group = int(order[place])
        first, stop = int(self._group_first[group]), int(self._group_first[group + 1])
        local = position - (int(ends[place]) - (stop - first))
        if epoch >= self.short_first_epochs:
            local = int(permute(np.array([local]), stop - first, key_of(self.seed, epoch, _CHUNKS, group))[0])
        chunk = first + local
        length_class = int(np.searchsorted(self._first_chunk, chunk, side="right")) - 1
        size, count = int(self._size[length_class]), int(self._count[length_class])
        begin = (chunk - int(self._first_chunk[length_class])) * size
        inside = np.arange(begin, min(begin + size, count))
        shuffled = permute(inside, count, key_of(self.seed, epoch, _DOCUMENTS, length_class))
        return self._documents[int(self._start[length_class]) + shuffled].astype(np.int64)

    def _groups_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Groups in the order of an epoch, and the number of chunks up to the end of each."""
        if epoch != self._epoch:
            count = len(self._group_first) - 1
            order = permute(np.arange(count), count, key_of(self.seed, epoch, _GROUPS))
            self._group_order, self._group_ends = order, np.cumsum(np.diff(self._group_first)[order])
            self._epoch = epoch
        return self._group_order, self._group_ends


def _groups(shard_documents: np.ndarray, shuffle_shards: int | None, seed: int) -> list[np.ndarray]:
    """Document numbers (uint32) of each group of shards; which shards form a group depends on the seed alone."""
    ends = np.cumsum(shard_documents)
    if shuffle_shards is None or shuffle_shards >= len(ends):
        return [np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.uint32)]
    shards = permute(np.arange(len(ends)), len(ends), key_of(seed, _SHARDS))
    return [
        np.concatenate([np.arange(ends[s] - shard_documents[s], ends[s], dtype=np.uint32) for s in sorted(group)])
        for group in np.split(shards, np.arange(shuffle_shards, len(shards), shuffle_shards))
    ]


def _ascending(lengths: np.ndarray) -> np.ndarray:
    """Stable order by length; in 16 bits where they suffice, since numpy sorts those by radix."""
    narrow = len(lengths) == 0 or int(lengths.max()) < 1 << 16
    return np.argsort(lengths.astype(np.uint16) if narrow else lengths, kind="stable")

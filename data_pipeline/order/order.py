"""Which documents form which global batch: a pure function of (lengths, shards, settings, seed, step).

It does not depend on ranks, workers or earlier steps. So the loader's state is the step, and any step is computed
without those before it.

A corpus is sorted by length once (within groups of shards, if locality is wanted) and cut into *classes* of like
length; all epochs use this table of 4 bytes a document. A *chunk* is a few documents of one class. An epoch visits the
groups in a random order and the chunks of a group in a random order, and fills the chunks of a class with its documents
in a random order, each document once. A random order is a keyed permutation that is computed place by place (a Feistel
network), so nothing is stored or shuffled, and no library's random generator decides what a run reads.

A chunk is a whole global batch (of a fixed number of documents), or a micro batch of a limited number of tokens with
padding; then a global batch is a fixed number of micro batches, whatever their lengths and the number of ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transpooler.data_pipeline.order.permutation import key_of, permute

MIN_CLASS_CHUNKS = 8
"""A class that fills fewer chunks is made wider; otherwise the same documents would meet in every epoch."""

_SHARDS, _GROUPS, _CHUNKS, _DOCUMENTS = range(4)  # what a permutation orders, a part of its key


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a corpus is cut into chunks: `documents` each, or as many as fit into `tokens` with padding."""

    documents: int | None = None
    tokens: int = 0
    width: float | None = None
    """Lengths in a class differ by at most this share (where MIN_CLASS_CHUNKS allows it); None = one class."""


def cut_classes(lengths: np.ndarray, cut: Cut) -> list[tuple[int, int, int]]:
    """Cut ascending `lengths` into classes; returns their (start, stop, chunk size), ascending.

    With a fixed number of documents only the class of the shortest may have a chunk that is not full.
    """
    classes: list[tuple[int, int, int]] = []
    stop = len(lengths)
    while stop:
        longest = int(lengths[stop - 1])
        size = cut.documents or max(1, cut.tokens // max(1, longest))
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

    `lengths` are the tokens of each document as the loader will cut it, `shard_documents` the documents of each shard,
    both in corpus order. Shards form groups of `shuffle_shards` (None: one group), and only documents of one group are
    mixed. Epochs before `short_first_epochs` visit the chunks from short to long.
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
        for numbers in _form_groups(shards, shuffle_shards, seed):
            own = lengths[numbers]
            by_length = _sort_lengths(own)
            np.take(numbers, by_length, out=self._documents[done : done + len(numbers)], mode="clip")
            classes += [(done + a, done + b, size) for a, b, size in cut_classes(own[by_length], cut)]
            group_classes.append(len(classes))
            done += len(numbers)
        table = np.array(classes, np.int64).reshape(-1, 3)
        self._start, self._count, self._size = table[:, 0], table[:, 1] - table[:, 0], table[:, 2]
        self._first_chunk = np.concatenate([[0], np.cumsum(-(-self._count // self._size))])
        self._group_first = self._first_chunk[group_classes]
        self.num_chunks = int(self._first_chunk[-1])
        """Chunks of an epoch, the same number in every epoch."""
        self._epoch, self._group_order, self._group_ends = -1, np.empty(0), np.empty(0)

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        tables = (self._documents, self._start, self._count, self._size, self._first_chunk, self._group_first)
        return sum(table.nbytes for table in tables)

    def chunk(self, epoch: int, position: int) -> np.ndarray:
        """Return the document numbers (int64) of chunk `position` of an epoch."""
        order, ends = self._order_groups(epoch)
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

    def _order_groups(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the groups in the order of an epoch, and the number of chunks up to the end of each."""
        if epoch != self._epoch:
            count = len(self._group_first) - 1
            order = permute(np.arange(count), count, key_of(self.seed, epoch, _GROUPS))
            self._group_order, self._group_ends = order, np.cumsum(np.diff(self._group_first)[order])
            self._epoch = epoch
        return self._group_order, self._group_ends


def _form_groups(shard_documents: np.ndarray, shuffle_shards: int | None, seed: int) -> list[np.ndarray]:
    """Return the document numbers (uint32) of each group of shards. The seed decides which shards form one."""
    ends = np.cumsum(shard_documents)
    if shuffle_shards is None or shuffle_shards >= len(ends):
        return [np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.uint32)]
    shards = permute(np.arange(len(ends)), len(ends), key_of(seed, _SHARDS))
    return [
        np.concatenate([np.arange(ends[s] - shard_documents[s], ends[s], dtype=np.uint32) for s in sorted(group)])
        for group in np.split(shards, np.arange(shuffle_shards, len(shards), shuffle_shards))
    ]


def _sort_lengths(lengths: np.ndarray) -> np.ndarray:
    """Return the stable order by length, computed in 16 bits if they suffice: numpy sorts those by radix."""
    narrow = len(lengths) == 0 or int(lengths.max()) < 1 << 16
    return np.argsort(lengths.astype(np.uint16) if narrow else lengths, kind="stable")

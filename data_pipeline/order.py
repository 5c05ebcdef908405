"""Which documents form which global batch: pure functions of (lengths, batch size, buckets, seed, step).

Ranks, workers and the past play no part, so resuming at a step is calling with that step. An epoch's plan costs one
permutation and one sort of its windows: O(N log N) numpy, 8 bytes a document.
"""

import numpy as np


def steps_per_epoch(num_documents: int, batch_size: int) -> int:
    """Optimizer steps that see every document once; the last one may see fewer than `batch_size`."""
    return -(-num_documents // batch_size)


def epoch_order(lengths: np.ndarray, *, batch_size: int, bucket_batches: int, seed: int, epoch: int) -> np.ndarray:
    """All document numbers in the order of one epoch; batch t is the slice [t * batch_size, (t + 1) * batch_size).

    The documents are permuted, sorted by length within windows of `bucket_batches` batches, cut into batches, and the
    batches are permuted. What does not fill a batch comes last: a random few documents, unsorted by window.
    """
    rng = np.random.Generator(np.random.PCG64([seed % 2**64, epoch]))
    order = rng.permutation(len(lengths))
    num_full = len(order) // batch_size
    full, rest = np.split(order, [num_full * batch_size])
    window = np.arange(len(full)) // (bucket_batches * batch_size)
    if bucket_batches > 1:
        full = full[np.lexsort((lengths[full], window))]
    batches = full.reshape(num_full, batch_size)[rng.permutation(num_full)]
    return np.concatenate([batches.ravel(), rest])


def global_batch(lengths: np.ndarray, *, batch_size: int, bucket_batches: int, seed: int, step: int) -> np.ndarray:
    """Document numbers of optimizer step `step`, 0-based over the whole run."""
    return Order(lengths, batch_size=batch_size, bucket_batches=bucket_batches, seed=seed).batch(step)


class Order:
    """`global_batch` for many steps: keeps the plan of the current epoch."""

    def __init__(self, lengths: np.ndarray, *, batch_size: int, bucket_batches: int, seed: int) -> None:
        self.lengths, self.batch_size, self.bucket_batches, self.seed = lengths, batch_size, bucket_batches, seed
        self.steps_per_epoch = steps_per_epoch(len(lengths), batch_size)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def epoch(self, step: int) -> int:
        """Epoch of a step, 0-based."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Document numbers of the global batch of `step`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = epoch_order(
                self.lengths,
                batch_size=self.batch_size,
                bucket_batches=self.bucket_batches,
                seed=self.seed,
                epoch=epoch,
            )
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]

"""Steps to chunks: how chunks of one corpus, or of several with weights, form global batches.

With one corpus an epoch is a whole number of steps, and its last batch holds what is left. With several every batch is
full, and each corpus has epochs of its own, which end inside batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transpooler.data_pipeline.order.order import CorpusOrder

PERIOD = 4096
"""Weights are met exactly over so many chunks, and nearly over a few: the corpora alternate as evenly as possible."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Documents that share a micro batch (token budget) or a global batch (number of documents)."""

    corpus: int
    epoch: int
    """Epoch of the corpus, 0-based."""
    numbers: np.ndarray
    """Document numbers within the corpus, int64."""


class BatchOrder:
    """The global batch of any step, as chunks."""

    def __init__(self, corpora: Sequence[CorpusOrder], weights: Sequence[float], chunks_per_step: int) -> None:
        self.corpora, self.chunks_per_step = list(corpora), chunks_per_step
        self.steps_per_epoch = -(-corpora[0].num_chunks // chunks_per_step)
        """Steps of an epoch of the only corpus; of several, those of the first if it were alone."""
        self._turn = _take_turns(weights)
        self._count = np.bincount(self._turn, minlength=len(weights))
        self._turns_before = np.zeros(PERIOD, np.int64)
        for corpus in range(len(weights)):
            mine = self._turn == corpus
            self._turns_before[mine] = np.arange(int(mine.sum()))

    def epoch(self, step: int) -> int:
        """Return the epoch (0-based) of the only, or first listed, corpus at the beginning of a step."""
        if len(self.corpora) == 1:
            return step // self.steps_per_epoch
        period, place = divmod(step * self.chunks_per_step, PERIOD)
        before = period * int(self._count[0]) + int((self._turn[:place] == 0).sum())
        return before // self.corpora[0].num_chunks

    def batch(self, step: int) -> list[Chunk]:
        """Return the chunks of optimizer step `step`, 0-based over the whole run."""
        if len(self.corpora) == 1:
            epoch, position = divmod(step, self.steps_per_epoch)
            first = position * self.chunks_per_step
            last = min(first + self.chunks_per_step, self.corpora[0].num_chunks)
            return [Chunk(0, epoch, self.corpora[0].chunk(epoch, place)) for place in range(first, last)]
        slots = range(step * self.chunks_per_step, (step + 1) * self.chunks_per_step)
        return [self._chunk(slot) for slot in slots]

    def _chunk(self, slot: int) -> Chunk:
        period, place = divmod(slot, PERIOD)
        corpus = int(self._turn[place])
        turn = period * int(self._count[corpus]) + int(self._turns_before[place])
        epoch, position = divmod(turn, self.corpora[corpus].num_chunks)
        return Chunk(corpus, epoch, self.corpora[corpus].chunk(epoch, position))


def _take_turns(weights: Sequence[float]) -> np.ndarray:
    """Return the corpus (int64) of each of PERIOD chunks: shares by largest remainder, at least one, spread evenly."""
    exact = np.maximum(np.array(weights, np.float64) / sum(weights) * PERIOD, 1)
    exact *= PERIOD / exact.sum()
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    by_remainder = np.argsort(-(exact - counts), kind="stable")
    counts[by_remainder[: PERIOD - int(counts.sum())]] += 1
    while counts.sum() > PERIOD:  # the minimum of one each gave more than PERIOD
        counts[np.argmax(counts)] -= 1
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    corpora = np.repeat(np.arange(len(counts)), counts)
    return corpora[np.argsort(places, kind="stable")]

"""Shards to batches for one rank. The whole state is the step number: resuming is `steps(start)`.

The order alone decides what a global batch holds. If it is a fixed number of documents, they are sorted by length, the
longest first, and dealt to micro steps and ranks, so that documents of like length are computed at the same time. With
a token budget the order gives whole micro batches, which are dealt. Every rank gets the same number of micro batches in
every step; a rank for which none is left gets a dummy whose labels are all ignored.

Documents that cannot be read are left out and counted. Above `data.max_damaged_documents` the step carries the error
instead of raising it: the trainer asks all ranks before any of them leaves, so that none waits for a rank that is gone.
"""

import itertools
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from transpooler.common import UserError, percent, say
from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.limits import cut_length
from transpooler.data_pipeline.loading.collate import IGNORED_LABEL, BatchPart, collate
from transpooler.data_pipeline.loading.examples import Example, ExampleMaker
from transpooler.data_pipeline.loading.prefetch import in_processes, prefetch
from transpooler.data_pipeline.objectives.sentences import MAX_UNIT_TOKENS
from transpooler.data_pipeline.order.corpus import batch_order, list_keys, open_corpora, tokenizer_folder
from transpooler.data_pipeline.order.mixture import Chunk
from transpooler.data_pipeline.shards.dataset import DamagedShardError
from transpooler.data_pipeline.tokenizer import load_tokenizer

__all__ = ["IGNORED_LABEL", "Loader", "Step"]
_LOOKED_AT_DOCUMENTS = 16
EVALUATION_EPOCH = 0  # noise of evaluation; training epoch e draws from e + 1

Item = tuple[int, int, int]
"""(corpus, document number, epoch of the noise)."""


@dataclass(frozen=True)
class Step:
    """The share of one rank in one optimizer step."""

    micro_batches: list[dict[str, torch.Tensor]]
    """input_ids and attention_mask (B, N), labels (B, T), all int64; the same number of batches on every rank."""
    keys: list[str]
    """Documents of the whole global batch, over all ranks."""
    epoch: int
    lengths: list[tuple[int, int]] = field(default_factory=list)
    """(source tokens, target tokens with a loss) of each document that this rank answers for: no padding, no dummy."""
    damage: list[str] = field(default_factory=list)
    """One message for each document of this rank's share that could not be read; they are left out."""
    error: UserError | None = None
    """Set if more documents are damaged than data.max_damaged_documents allows; then all ranks must stop together."""

    @property
    def num_source_tokens(self) -> int:
        """Source tokens of the documents that this rank answers for."""
        return sum(source for source, _ in self.lengths)


class Loader:
    """Gives the batches of one split for one rank. A global batch depends neither on earlier ones nor on the ranks."""

    def __init__(
        self,
        config: DataConfig,
        *,
        split: str,
        seed: int,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        pad_multiple: int = 1,
        part: BatchPart | None = None,
    ) -> None:
        """`rank` and `world_size` count those that read different documents; `part`: what this one has of its own."""
        self.config, self.pad_multiple, self.part = config, pad_multiple, part
        self.rank, self.world_size, self.micro_batch_size = rank, world_size, micro_batch_size
        self.corpora = open_corpora(config, split)
        self.dataset = self.corpora[0].dataset
        self.tokenizer = load_tokenizer(tokenizer_folder(config))
        self.tokenizer_fingerprint: str = self.dataset.index["tokenizer_fingerprint"]
        for corpus in self.corpora:
            corpus.dataset.check_tokenizer(self.tokenizer, config.shards)
        self.vocab_size: int = self.dataset.index["vocab_size"]
        if config.needs_summaries:
            self._require_summaries()
        self._examples = ExampleMaker(config, self.tokenizer, seed)
        self.special = self._examples.special
        self._dummy: Example = np.array([self.special.eos]), np.array([IGNORED_LABEL])
        """Just </s> and no loss, for a rank without documents: it must take part in every collective."""
        if rank == 0 and (config.objective == "gap_sentences" or config.permute_sentences):
            self._tell_forced_cuts(split)
        self._order = batch_order(config, self.corpora, seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.num_micro_batches = config.num_micro_batches(world_size, micro_batch_size)
        """Micro batches of every training step, on every rank."""
        self._remote = any(corpus.dataset.remote_bytes for corpus in self.corpora)
        self._looked_ahead = -1
        self.damaged_documents = 0
        """Documents left out so far. Training sets it to the run's count over all ranks before each step."""

    def _tell_forced_cuts(self, split: str) -> None:
        """Say so if many sentences of the first documents are only stretches of the greatest length."""
        cuts = total = 0
        for number in range(min(_LOOKED_AT_DOCUMENTS, len(self.dataset))):
            with suppress(DamagedShardError):  # counted when a batch reads it
                found = self._examples.count_forced_cuts(self.dataset.read(number))
                cuts, total = cuts + found[0], total + found[1]
        if cuts * 10 > total:
            where = f"of the {total:,} sentences of the first documents of {split}, {percent(cuts / total)} %"
            say(f"{where} have no end and are cut at {MAX_UNIT_TOKENS} tokens")

    def steps(self, start: int) -> Generator[Step, None, None]:
        """Yield the steps of the run from `start` on, without end, read ahead. Close the iterator to stop reading."""
        config = self.config
        self._looked_ahead = -1
        if config.workers:
            ahead = in_processes(self._pack_step, start, config.workers, config.prefetch_steps)
        else:
            ahead = prefetch(map(self._step, itertools.count(start)), config.prefetch_steps)
        try:
            for step in ahead:
                yield self._check_damage(_unpack_step(step) if config.workers else step)
        finally:
            ahead.close()

    def evaluation_steps(self, max_documents: int | None = None) -> Iterator[Step]:
        """Yield one pass over the first `max_documents` (None: all) in corpus order, with the same noise each time."""
        self.damaged_documents = 0  # each pass counts for itself, since all meet the same documents
        items = [
            (corpus, number, EVALUATION_EPOCH)
            for corpus in range(len(self.corpora))
            for number in range(len(self.corpora[corpus].dataset))[:max_documents]
        ][:max_documents]
        for start in range(0, len(items), self.config.batch_size):
            batch = items[start : start + self.config.batch_size]
            keys = [self.corpora[corpus].key(number) for corpus, number, _ in batch]
            num_micro_steps = -(-len(batch) // (self.world_size * self.micro_batch_size))
            yield self._check_damage(self._make_step(self._deal(batch, num_micro_steps), keys, 0))

    def _step(self, step: int) -> Step:
        """Make this rank's share of one training step; pure, apart from the cache of remote shards."""
        if self._remote:
            self._fetch_ahead(step)
        chunks = self._order.batch(step)
        return self._make_step(self._take_share(chunks), list_keys(self.corpora, chunks), self._order.epoch(step))

    def _pack_step(self, step: int) -> Step:
        """Make a step with arrays instead of tensors, which would each cost a file descriptor between processes."""
        made = self._step(step)
        arrays: Any = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in made.micro_batches]
        return replace(made, micro_batches=arrays)

    def _take_share(self, chunks: list[Chunk]) -> list[list[Item]]:
        """Return this rank's micro batches of a global batch."""
        items = [[(chunk.corpus, int(n), chunk.epoch + 1) for n in chunk.numbers] for chunk in chunks]
        if self.config.batch_tokens is None:
            return self._deal(list(itertools.chain(*items)), self.num_micro_batches)
        alike = sorted(items, key=lambda chunk: -len(chunk) * max(map(self._length, chunk)))
        own = alike[self.rank :: self.world_size]
        return own + [[] for _ in range(self.num_micro_batches - len(own))]

    def _fetch_ahead(self, step: int) -> None:
        """Start to fetch the remote shards of the following steps, each step once."""
        last = step + self.config.fetch_ahead_steps
        for ahead in range(max(step, self._looked_ahead + 1), last + 1):
            for corpus, number, _ in itertools.chain(*self._take_share(self._order.batch(ahead))):
                self.corpora[corpus].dataset.fetch_ahead(number)
        self._looked_ahead = last

    def _deal(self, items: list[Item], num_micro_steps: int) -> list[list[Item]]:
        """Deal documents by length, so that ranks compute like lengths together; returns this rank's micro batches."""
        by_length = sorted(items, key=lambda item: -self._length(item))
        per_step = self.world_size * self.micro_batch_size
        return [
            by_length[first : first + per_step][self.rank :: self.world_size]
            for first in range(0, num_micro_steps * per_step, per_step)
        ]

    def _length(self, item: Item) -> int:
        length = int(self.corpora[item[0]].dataset.source_lengths[item[1]])
        return cut_length(length, self.config.max_source_tokens, len(self.config.source_prefix_ids))

    def _make_step(self, micro_batches: list[list[Item]], keys: list[str], epoch: int) -> Step:
        batches, damage, lengths = [], list[str](), list[tuple[int, int]]()
        for items in micro_batches:
            examples = [example for item in items if (example := self._example(item, damage)) is not None]
            own = range(len(examples)) if self.part is None else self.part.documents(len(examples))
            lengths += [(len(examples[number][0]), _count_labels(examples[number])) for number in own]
            batches.append(collate(examples or [self._dummy], self.special.pad, self.pad_multiple, self.part))
        return Step(batches, keys, epoch, lengths, damage)

    def _example(self, item: Item, damage: list[str]) -> Example | None:
        corpus, number, epoch = item
        try:
            document = self.corpora[corpus].dataset.read(number)
        except DamagedShardError as error:
            damage.append(str(error))
            return None
        return self._examples.example(document, self.corpora[corpus].key(number), epoch)

    def _check_damage(self, step: Step) -> Step:
        """Count and log the step's damaged documents; returns the step, with an error if they are too many."""
        if not step.damage:
            return step
        self.damaged_documents += len(step.damage)
        limit = self.config.max_damaged_documents
        if self.damaged_documents > limit:
            counted = f" ({self.damaged_documents} damaged documents; at most {limit} allowed)" if limit else ""
            return replace(step, error=UserError(step.damage[-1] + counted))
        for message in step.damage:
            say(f"{message}; left out, {self.damaged_documents} of at most {limit} so far")
        return step

    def _require_summaries(self) -> None:
        for corpus in self.corpora:
            missing = int(np.count_nonzero(corpus.dataset.target_lengths == 0))
            if missing:
                raise UserError(
                    f"{corpus.dataset.folder}: {missing} of {len(corpus.dataset)} documents have no summary; "
                    "use data.objective=denoise or gap_sentences"
                )


def _count_labels(example: Example) -> int:
    return int((np.asarray(example[1]) != IGNORED_LABEL).sum())


def _unpack_step(step: Step) -> Step:
    batches: Any = step.micro_batches
    tensors = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
    return replace(step, micro_batches=tensors)

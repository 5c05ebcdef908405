"""Shards to batches for one rank. The whole state is the step number: resuming is `steps(start)`.

A global batch is decided by the order alone. With a fixed number of documents they are sorted by length, longest first,
and dealt to micro steps and ranks, so that what runs at the same time has like lengths. With a token budget the order
gives whole micro batches, which are dealt. Every rank gets the same number of micro batches in every step; where none
is left it gets a dummy whose labels are all ignored.

Documents that cannot be read are left out and counted. Above `data.max_damaged_documents` the step carries the error
instead of raising it: the trainer asks all ranks before any of them leaves, so that none waits for a rank that is gone.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from transpooler.common.errors import UserError
from transpooler.common.log import say
from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.limits import cut_length
from transpooler.data_pipeline.loading.collate import IGNORED_LABEL, collate, make_dummy
from transpooler.data_pipeline.loading.examples import Example, ExampleMaker
from transpooler.data_pipeline.loading.prefetch import in_processes, prefetch
from transpooler.data_pipeline.order.corpus import batch_keys, batch_order, open_corpora, tokenizer_folder
from transpooler.data_pipeline.order.mixture import Chunk
from transpooler.data_pipeline.shards.dataset import DamagedShardError
from transpooler.data_pipeline.tokenizer import fingerprint, load_tokenizer

__all__ = ["IGNORED_LABEL", "Loader", "Step"]
EVALUATION_EPOCH = 0  # noise of evaluation; training epoch e draws from e + 1

Item = tuple[int, int, int]
"""(corpus, document number, epoch of the noise)."""


@dataclass(frozen=True)
class Step:
    """What one rank needs for one optimizer step."""

    micro_batches: list[dict[str, torch.Tensor]]
    """input_ids and attention_mask (B, N), labels (B, T), all int64; the same number of batches on every rank."""
    keys: list[str]
    """Documents of the whole global batch, over all ranks."""
    epoch: int
    num_source_tokens: int
    """Real source tokens in this rank's micro batches (padding and dummies left out)."""
    damage: list[str] = field(default_factory=list)
    """Why documents of this rank's share could not be read: one message each; they are left out."""
    error: UserError | None = None
    """More documents are damaged than data.max_damaged_documents allows: training must end, on all ranks together."""


class Loader:
    """Batches of one split for one rank, the same whatever was loaded before and however many ranks there are."""

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
    ) -> None:
        self.config, self.split, self.seed = config, split, seed
        self.rank, self.world_size, self.micro_batch_size = rank, world_size, micro_batch_size
        self.pad_multiple = pad_multiple
        self.corpora = open_corpora(config, split)
        self.dataset = self.corpora[0].dataset
        self.tokenizer = load_tokenizer(tokenizer_folder(config))
        self.tokenizer_fingerprint: str = self.dataset.index["tokenizer_fingerprint"]
        if fingerprint(self.tokenizer) != self.tokenizer_fingerprint:
            raise UserError(
                f"{config.shards}: its tokenizer is not the tokenizer of the shards in {self.dataset.folder}; "
                "prepare again"
            )
        self.vocab_size: int = self.dataset.index["vocab_size"]
        self.num_documents = sum(len(corpus.dataset) for corpus in self.corpora)
        if config.needs_summaries:
            self._require_summaries()
        self._examples = ExampleMaker(config, self.tokenizer, seed)
        self.special = self._examples.special
        self._order = batch_order(config, self.corpora, seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.num_micro_batches = config.num_micro_batches(world_size, micro_batch_size)
        """Micro batches of every training step, on every rank."""
        self._remote = any(corpus.dataset.remote_bytes for corpus in self.corpora)
        self._looked_ahead = -1
        self.damaged_documents = 0
        """Left out so far. In training set to the run's count over all ranks before each step."""

    def steps(self, start: int) -> Generator[Step, None, None]:
        """Endless from optimizer step `start` of the run, read ahead; close the iterator to stop that."""
        config = self.config
        self._looked_ahead = -1
        if config.workers:
            packed = in_processes(self._packed_step, start, config.workers, config.prefetch_steps)
            ahead: Iterable[Step] = _unpacked(packed)
        else:
            ahead = prefetch((self._step(step) for step in itertools.count(start)), config.prefetch_steps)
        try:
            for step in ahead:
                yield self._judged(step)
        finally:
            ahead.close()  # type: ignore[attr-defined]

    def evaluation_steps(self, max_documents: int | None = None) -> Iterator[Step]:
        """One pass in corpus order over the first `max_documents`; noise, if any, is the same each time."""
        self.damaged_documents = 0  # of this pass: every pass meets the same ones
        items = [
            (corpus, number, EVALUATION_EPOCH)
            for corpus in range(len(self.corpora))
            for number in range(len(self.corpora[corpus].dataset))[:max_documents]
        ][:max_documents]
        for start in range(0, len(items), self.config.batch_size):
            batch = items[start : start + self.config.batch_size]
            keys = [self.corpora[corpus].key(number) for corpus, number, _ in batch]
            num_micro_steps = -(-len(batch) // (self.world_size * self.micro_batch_size))
            yield self._judged(self._made(self._dealt(batch, num_micro_steps), keys, 0))

    def _step(self, step: int) -> Step:
        """The share of this rank in one training step; pure, but for the cache of remote shards."""
        if self._remote:
            self._fetch_ahead(step)
        chunks = self._order.batch(step)
        return self._made(self._share(chunks), batch_keys(self.corpora, chunks), self._order.epoch(step))

    def _packed_step(self, step: int) -> Step:
        """`_step` with arrays for tensors: a tensor would cost a file descriptor."""
        made = self._step(step)
        arrays: Any = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in made.micro_batches]
        return replace(made, micro_batches=arrays)

    def _share(self, chunks: list[Chunk]) -> list[list[Item]]:
        """This rank's micro batches of a global batch."""
        items = [[(chunk.corpus, int(n), chunk.epoch + 1) for n in chunk.numbers] for chunk in chunks]
        if self.config.batch_tokens is None:
            return self._dealt(list(itertools.chain(*items)), self.num_micro_batches)
        alike = sorted(items, key=lambda chunk: -len(chunk) * max(map(self._length, chunk)))
        own = alike[self.rank :: self.world_size]
        return own + [[] for _ in range(self.num_micro_batches - len(own))]

    def _fetch_ahead(self, step: int) -> None:
        """Begin to fetch the remote shards of the next steps that were not looked at yet."""
        last = step + self.config.fetch_ahead_steps
        for ahead in range(max(step, self._looked_ahead + 1), last + 1):
            for corpus, number, _ in itertools.chain(*self._share(self._order.batch(ahead))):
                self.corpora[corpus].dataset.fetch_ahead(number)
        self._looked_ahead = last

    def _dealt(self, items: list[Item], num_micro_steps: int) -> list[list[Item]]:
        """This rank's micro batches of a fixed number of documents, of like length at the same time on all ranks."""
        by_length = sorted(items, key=lambda item: -self._length(item))
        per_step = self.world_size * self.micro_batch_size
        return [
            by_length[first : first + per_step][self.rank :: self.world_size]
            for first in range(0, num_micro_steps * per_step, per_step)
        ]

    def _length(self, item: Item) -> int:
        return cut_length(int(self.corpora[item[0]].dataset.source_lengths[item[1]]), self.config.max_source_tokens)

    def _made(self, micro_batches: list[list[Item]], keys: list[str], epoch: int) -> Step:
        batches, damage, num_source_tokens = [], list[str](), 0
        for items in micro_batches:
            examples = [example for item in items if (example := self._example(item, damage)) is not None]
            num_source_tokens += sum(len(source) for source, _ in examples)
            batches.append(
                collate(examples, self.special.pad, self.pad_multiple)
                if examples
                else make_dummy(self.special.eos, self.special.pad, self.pad_multiple)
            )
        return Step(batches, keys, epoch, num_source_tokens, damage)

    def _example(self, item: Item, damage: list[str]) -> Example | None:
        corpus, number, epoch = item
        try:
            document = self.corpora[corpus].dataset.read(number)
        except DamagedShardError as error:
            damage.append(str(error))
            return None
        return self._examples.example(document, self.corpora[corpus].key(number), epoch)

    def _judged(self, step: Step) -> Step:
        """`step`, with an error if it has one damaged document too many."""
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


def _unpacked(steps: Generator[Step, None, None]) -> Generator[Step, None, None]:
    try:
        for step in steps:
            batches: Any = step.micro_batches
            tensors = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
            yield replace(step, micro_batches=tensors)
    finally:
        steps.close()

"""Shards to batches for one rank. The whole state is the step number: resuming is `steps(start)`.

A global batch is decided by `order` alone. Its documents are sorted by length, longest first, and dealt to micro steps
and ranks, so that what runs at the same time has like lengths. Every rank gets the same number of micro batches, that
of a full batch; where a rank has no document left it gets a dummy whose labels are all ignored.
"""

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.objectives import SentenceEnds, gap_sentences, text_infilling
from data_pipeline.order import Order
from data_pipeline.prefetch import prefetch
from data_pipeline.shards import ShardDataset
from data_pipeline.tokenizer import fingerprint, load_tokenizer, special_ids

IGNORED_LABEL = -100
EVALUATION_EPOCH = 0  # noise of evaluation; training epoch e draws from e + 1


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


class Loader:
    """Batches of one split for one rank, the same whatever was loaded before and however many ranks there are."""

    state_is_just_the_step = True

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
        shards = Path(config.shards).expanduser()
        self.dataset = ShardDataset(shards / split)
        tokenizer = load_tokenizer(shards / "tokenizer")
        self.special = special_ids(tokenizer)
        self.tokenizer_fingerprint: str = self.dataset.index["tokenizer_fingerprint"]
        if fingerprint(tokenizer) != self.tokenizer_fingerprint:
            raise UserError(f"{shards / 'tokenizer'}: is not the tokenizer of the shards beside it; prepare again")
        self.vocab_size: int = self.dataset.index["vocab_size"]
        self.num_documents = len(self.dataset)
        if config.objective == "summarize" and not self.dataset.target_lengths.all():
            missing = int((self.dataset.target_lengths == 0).sum())
            raise UserError(
                f"{self.dataset.folder}: {missing} of {self.num_documents} documents have no summary; "
                "use data.objective=denoise or gap_sentences"
            )
        if config.objective == "gap_sentences":
            vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
            self._boundaries = SentenceEnds([token or "" for token in vocabulary])
        self._order = Order(
            np.minimum(self.dataset.source_lengths, config.max_source_tokens),
            batch_size=config.batch_size,
            bucket_batches=config.bucket_batches,
            seed=seed,
        )
        self.steps_per_epoch = self._order.steps_per_epoch

    def steps(self, start: int) -> Generator[Step, None, None]:
        """Endless from optimizer step `start` of the run, read ahead by a thread; close the iterator to stop it."""
        return prefetch((self._step(step) for step in itertools.count(start)), self.config.prefetch_steps)

    def evaluation_steps(self, max_documents: int | None = None) -> Iterator[Step]:
        """One pass in corpus order over the first `max_documents`; noise, if any, is the same each time."""
        numbers = np.arange(self.num_documents)[:max_documents]
        for start in range(0, len(numbers), self.config.batch_size):
            batch = numbers[start : start + self.config.batch_size]
            num_micro_steps = -(-len(batch) // (self.world_size * self.micro_batch_size))
            yield self._deal(batch, num_micro_steps, epoch=0, noise_epoch=EVALUATION_EPOCH)

    def _step(self, step: int) -> Step:
        epoch = self._order.epoch(step)
        num_micro_steps = -(-self.config.batch_size // (self.world_size * self.micro_batch_size))
        return self._deal(self._order.batch(step), num_micro_steps, epoch=epoch, noise_epoch=epoch + 1)

    def _deal(self, numbers: np.ndarray, num_micro_steps: int, *, epoch: int, noise_epoch: int) -> Step:
        keys = [self.dataset.key(int(number)) for number in numbers]
        by_length = numbers[np.argsort(-self._order.lengths[numbers], kind="stable")]
        per_step = self.world_size * self.micro_batch_size
        micro_batches, num_source_tokens = [], 0
        for first in range(0, num_micro_steps * per_step, per_step):
            own = by_length[first : first + per_step][self.rank :: self.world_size]
            pairs = [self._pair(int(number), noise_epoch) for number in own]
            num_source_tokens += sum(len(source) for source, _ in pairs)
            micro_batches.append(self._collate(pairs) if pairs else self._dummy())
        return Step(micro_batches, keys, epoch, num_source_tokens)

    def _pair(self, number: int, noise_epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of one document under the objective, cut to their limits, </s> at their ends."""
        document = self.dataset.read(number)
        limit, room = self.config.max_source_tokens - 1, self.config.max_target_tokens - 1
        if self.config.objective == "summarize":
            assert document.target is not None  # __init__ looked at all of them
            source, target = document.source[:limit], document.target
        else:
            rng = np.random.Generator(np.random.PCG64([self.seed % 2**64, noise_epoch, number]))
            # A window from anywhere: epochs see different parts, and not only how documents begin.
            start = int(rng.integers(max(1, len(document.source) - limit + 1)))
            window = document.source[start : start + limit].astype(np.int64)
            source, target = self._noisy(window, rng, room)
        return self._ended(source[:limit]), self._ended(target[:room])

    def _noisy(self, source: np.ndarray, rng: np.random.Generator, room: int) -> tuple[np.ndarray, np.ndarray]:
        if self.config.objective == "denoise":
            return text_infilling(
                source,
                self.special,
                rng,
                mask_fraction=self.config.mask_fraction,
                mean_span_tokens=self.config.mean_span_tokens,
                max_target_tokens=room,
            )
        return gap_sentences(
            source,
            self.special,
            rng,
            boundaries=self._boundaries,
            gap_fraction=self.config.gap_fraction,
            max_target_tokens=room,
        )

    def _ended(self, tokens: np.ndarray) -> np.ndarray:
        return np.append(tokens.astype(np.int64), self.special.eos)

    def _collate(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
        longest_source = max(len(source) for source, _ in pairs)
        width = -(-longest_source // self.pad_multiple) * self.pad_multiple
        input_ids = torch.full((len(pairs), width), self.special.pad, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full((len(pairs), max(len(target) for _, target in pairs)), IGNORED_LABEL, dtype=torch.int64)
        for row, (source, target) in enumerate(pairs):
            input_ids[row, : len(source)] = torch.from_numpy(source)
            attention_mask[row, : len(source)] = 1
            labels[row, : len(target)] = torch.from_numpy(target)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def _dummy(self) -> dict[str, torch.Tensor]:
        """A document of just </s> that no loss is taken of: the rank must take part in every collective."""
        end = np.array([self.special.eos])
        return self._collate([(end, np.array([IGNORED_LABEL]))])

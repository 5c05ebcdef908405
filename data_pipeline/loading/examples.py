"""Documents to (source, target) examples under the configured objective: a function of (seed, epoch, key)."""

import hashlib
from typing import Any

import numpy as np

from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.loading.objectives.denoise import text_infilling
from transpooler.data_pipeline.loading.objectives.gap_sentences import gap_sentences
from transpooler.data_pipeline.loading.objectives.sentences import SentenceEnds, permute_sentences
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.tokenizer import special_ids

Example = tuple[np.ndarray, np.ndarray]


class ExampleMaker:
    """Makes examples; noise depends on the run's seed, the epoch and the document's key, and on nothing else."""

    def __init__(self, config: DataConfig, tokenizer: Any, seed: int) -> None:
        self.config, self.seed = config, seed
        self.special = special_ids(tokenizer)
        self._boundaries: SentenceEnds | None = None
        if config.objective == "gap_sentences" or config.permute_sentences:
            vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
            self._boundaries = SentenceEnds([token or "" for token in vocabulary])

    def example(self, document: Document, key: str, epoch: int) -> Example:
        """Source and target (int64) of one document, cut to their limits, </s> at their ends."""
        limit, room = self.config.max_source_tokens - 1, self.config.max_target_tokens - 1
        if self.config.objective == "summarize":
            assert document.target is not None  # the loader looked at all of them
            source, target = document.source[:limit], document.target
        else:
            rng = self._generator(key, epoch)
            # A window from anywhere: epochs see different parts, and not only how documents begin.
            start = int(rng.integers(max(1, len(document.source) - limit + 1)))
            window = document.source[start : start + limit].astype(np.int64)
            source, target = self._noisy(window, rng, room)
        return self._ended(source[:limit]), self._ended(target[:room])

    def _generator(self, key: str, epoch: int) -> np.random.Generator:
        name = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        return np.random.Generator(np.random.PCG64([self.seed % 2**64, epoch, name]))

    def _noisy(self, source: np.ndarray, rng: np.random.Generator, room: int) -> Example:
        config = self.config
        if config.objective == "gap_sentences":
            assert self._boundaries is not None
            return gap_sentences(
                source,
                self.special,
                rng,
                boundaries=self._boundaries,
                gap_fraction=config.gap_fraction,
                max_target_tokens=room,
                selection=config.gap_selection,
                noise=config.gap_noise,
                kept_fraction=config.gap_kept_fraction,
            )
        shuffled = source if self._boundaries is None else permute_sentences(source, self._boundaries, rng)
        corrupted, target = text_infilling(
            shuffled,
            self.special,
            rng,
            mask_fraction=config.mask_fraction,
            mean_span_tokens=config.mean_span_tokens,
            max_target_tokens=room,
        )
        return corrupted, source if len(source) <= room else target

    def _ended(self, tokens: np.ndarray) -> np.ndarray:
        return np.append(tokens.astype(np.int64), self.special.eos)

"""Documents to (source, target) examples under the configured objective: a function of (seed, epoch, key)."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.limits import cut
from transpooler.data_pipeline.objectives import OBJECTIVES
from transpooler.data_pipeline.objectives.sentences import count_forced_cuts
from transpooler.data_pipeline.objectives.vocabulary import Vocabulary
from transpooler.data_pipeline.shards.dataset import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Example = tuple[np.ndarray, np.ndarray]
"""Source and target ids of one document, int64, each with </s> at its end."""


class ExampleMaker:
    """Makes examples. The noise of one depends on the run's seed, the epoch and the document's key alone."""

    def __init__(self, config: DataConfig, tokenizer: "PreTrainedTokenizerFast", seed: int) -> None:
        self.config, self.seed = config, seed
        self.objective = OBJECTIVES[config.objective]
        self._make_pair = self.objective.make_pair
        self._vocabulary = Vocabulary(tokenizer)
        self.special = self._vocabulary.special

    def count_forced_cuts(self, document: Document) -> tuple[int, int]:
        """Return how many sentences of a document are only cuts at the greatest length, and how many it has."""
        return count_forced_cuts(document.source, self._vocabulary.sentence_ends)

    def example(self, document: Document, key: str, epoch: int) -> Example:
        """Make the example of one document; source and target are cut to their limits."""
        config, source, rng = self.config, document.source, None
        if not self.objective.needs_summaries:
            name = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
            rng = np.random.Generator(np.random.PCG64([self.seed % 2**64, epoch, name]))
            window = max(1, config.max_source_tokens - 1 - len(config.source_prefix_ids))
            start = int(rng.integers(max(1, len(source) - window + 1)))
            source = source[start : start + window].astype(np.int64)
        source, target = self._make_pair(source, document.target, config, self._vocabulary, rng)
        eos = self.special.eos
        return (
            cut(source, config.max_source_tokens, eos, config.source_prefix_ids),
            cut(target, config.max_target_tokens, eos, config.target_prefix_ids),
        )

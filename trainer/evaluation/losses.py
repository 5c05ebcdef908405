"""Held-out loss of a model: with each document's own summary, and with another document's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from transpooler.common import progress
from transpooler.data_pipeline.loading.collate import IGNORED_LABEL, pad
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.trainer.config import Config
from transpooler.trainer.engine.ranks import ALONE, Ranks
from transpooler.trainer.evaluation.generate import batches, source_ids, target_ids

if TYPE_CHECKING:
    from transpooler.model import PoolingModel


@torch.no_grad()
def held_out_losses(
    model: "PoolingModel",
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    config: Config,
    ranks: Ranks = ALONE,
) -> tuple[float, float | None]:
    """Mean loss per target token in nats: with each document's own summary, and with another document's.

    The second is None for a single document. A model that ignores its input has equal losses. A collective of `ranks`.
    """
    model.eval()
    partners = derangement(len(documents), config.seed)
    work = ranks.share(list(batches(range(len(documents)), config.generation.batch_size)))
    sums = []
    num_tokens = sum(len(target_ids(document, tokenizer, config)) for document in documents)
    with progress("held-out loss", sum(len(batch) for _, batch in work)) as bar:
        for number, batch in work:
            sources = [source_ids(documents[i], tokenizer, config) for i in batch]
            input_ids, attention_mask = (each.to(model.device) for each in pad(sources, tokenizer.pad_token_id))
            losses = []
            for chosen in (batch, [partners[i] for i in batch]):
                targets = [target_ids(documents[i], tokenizer, config) for i in chosen]
                labels = pad(targets, IGNORED_LABEL)[0].to(model.device)
                summed = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, num_items_in_batch=1)
                losses.append(float(summed.loss))
            sums.append((number, losses))
            bar.advance(len(batch))
    # Both sums run over the same summaries, so over the same number of tokens.
    loss, shuffled = np.sum(ranks.gather_in_order(sums), axis=0) / num_tokens
    return float(loss), float(shuffled) if len(documents) > 1 else None


def derangement(count: int, seed: int) -> list[int]:
    """A permutation of range(count) without a fixed point (one random cycle); [0] for a single item."""
    order = np.random.default_rng(seed).permutation(count)
    partners = np.empty(count, dtype=np.int64)
    partners[order] = np.roll(order, 1)
    return partners.tolist()

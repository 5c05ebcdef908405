"""Examples to one padded batch of tensors, block-aligned if asked for."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from transpooler.data_pipeline.loading.examples import Example

IGNORED_LABEL = -100
Batch = dict[str, torch.Tensor]


class BatchPart(Protocol):
    """What one of the ranks that share a micro batch has of it."""

    @property
    def rank(self) -> int: ...

    def tokens(self, num_tokens: int, document: int) -> slice:
        """Its tokens of the source with this number in the batch."""
        ...

    def documents(self, num_documents: int) -> range:
        """The documents whose targets it computes."""
        ...


def pad(
    sequences: Sequence[np.ndarray | Sequence[int]], fill: int, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token ids at their ends with `fill`, to the longest or the next `multiple`.

    Returns the ids and the mask of what is real, both (B, N) int64.
    """
    width = -(-max(1, *map(len, sequences)) // multiple) * multiple
    ids = torch.full((len(sequences), width), fill, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.int64)
        mask[row, : len(sequence)] = 1
    return ids, mask


def collate(examples: Sequence[Example], fill: int, pad_multiple: int = 1, part: BatchPart | None = None) -> Batch:
    """Return input_ids and attention_mask (B, N), labels (B, T), all int64; N is a multiple of `pad_multiple`.

    With `part` they hold its tokens of all sources (of a source maybe none), and the targets of its documents, or one
    ignored label where it has none.
    """
    sources, targets = (list(each) for each in zip(*examples, strict=True))
    if part is not None:
        sources = [source[part.tokens(len(source), document)] for document, source in enumerate(sources)]
        targets = [targets[document] for document in part.documents(len(targets))] or [np.array([IGNORED_LABEL])]
    input_ids, attention_mask = pad(sources, fill, pad_multiple)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": pad(targets, IGNORED_LABEL)[0]}

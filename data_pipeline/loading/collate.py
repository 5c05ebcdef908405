"""Examples to one padded batch of tensors, block-aligned if asked for."""

from collections.abc import Sequence

import numpy as np
import torch

from transpooler.data_pipeline.loading.examples import Example

IGNORED_LABEL = -100
Batch = dict[str, torch.Tensor]


def collate(examples: Sequence[Example], pad: int, pad_multiple: int = 1) -> Batch:
    """input_ids and attention_mask (B, N), labels (B, T), all int64; N is a multiple of `pad_multiple`."""
    longest_source = max(len(source) for source, _ in examples)
    width = -(-longest_source // pad_multiple) * pad_multiple
    input_ids = torch.full((len(examples), width), pad, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full((len(examples), max(len(target) for _, target in examples)), IGNORED_LABEL, dtype=torch.int64)
    for row, (source, target) in enumerate(examples):
        input_ids[row, : len(source)] = torch.from_numpy(source)
        attention_mask[row, : len(source)] = 1
        labels[row, : len(target)] = torch.from_numpy(target)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def dummy(eos: int, pad: int, pad_multiple: int = 1) -> Batch:
    """A document of just </s> that no loss is taken of: the rank must take part in every collective."""
    return collate([(np.array([eos]), np.array([IGNORED_LABEL]))], pad, pad_multiple)

"""Texts to summaries with a trained model, a batch at a time: memory does not grow with the number of texts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

from transpooler.data_pipeline.tokenizer import Head, head_of, leading_ids
from transpooler.trainer.config.evaluation import GenerationConfig

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One generated summary."""

    text: str
    num_source_tokens: int | None
    """Tokens of the document; None if it was cut, since the rest is not read."""
    read_ids: list[int]
    """Token ids that the model read, </s> included."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the text under `summary`, and the lengths."""
        lengths = {"num_source_tokens": self.num_source_tokens, "num_read_tokens": len(self.read_ids)}
        return {"summary": self.text, **lengths}


def summarize(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str | Head],
    generation: GenerationConfig,
    max_source_tokens: int | None = None,
) -> Iterator[Summary]:
    """Yield one summary per text, in order. `max_source_tokens` None reads as much as the tokenizer says fits."""
    limit = source_limit(tokenizer, max_source_tokens)
    for batch in batches(texts, generation.batch_size):
        sources = [
            leading_ids(tokenizer, head_of(text) if isinstance(text, str) else text, limit - 1) for text in batch
        ]
        read = [[*ids, tokenizer.eos_token_id] for ids, _ in sources]
        for (ids, whole), cut, text in zip(sources, read, generate(model, tokenizer, read, generation), strict=True):
            yield Summary(text=text, num_source_tokens=len(ids) if whole else None, read_ids=cut)


def source_limit(tokenizer: Any, max_source_tokens: int | None) -> int:
    """How many tokens of a document are read, </s> included."""
    return max_source_tokens or int(tokenizer.model_max_length)


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    sources: Sequence[Sequence[int]],
    generation: GenerationConfig,
    *,
    synced: bool = False,
) -> list[str]:
    """Beam search over one batch of token ids (</s> included); the decoded texts.

    `synced`: go on until all ranks have finished, since each forward pass of ZeRO 3 needs all of them.
    """
    model.eval()
    input_ids, attention_mask = pad_batch(sources, tokenizer.pad_token_id, model.device)
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        num_beams=generation.num_beams,
        max_new_tokens=generation.max_new_tokens,
        min_new_tokens=generation.min_new_tokens,
        length_penalty=generation.length_penalty if generation.num_beams > 1 else 1.0,  # one beam has no use for it
        no_repeat_ngram_size=generation.no_repeat_ngram_size,
        do_sample=False,
        **({"synced_gpus": True} if synced else {}),
    )
    return [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]


def pad_batch(sequences: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded at the end with `fill`, and the mask of what is real, both (B, longest) int64."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), fill, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.int64)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items in order; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch

"""What a model reads of a document, and the summaries that it writes, batch by batch: memory does not grow with it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from transpooler.data_pipeline.limits import cut
from transpooler.data_pipeline.loading.collate import pad
from transpooler.data_pipeline.objectives.sentences import SentenceEnds
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.tokenizer import Head, head_of, leading_special_ids, leading_tokens, token_bytes
from transpooler.trainer.config import Config
from transpooler.trainer.config.evaluation import GenerationConfig
from transpooler.trainer.evaluation.sources import GroundedSentence, ground

if TYPE_CHECKING:
    from transpooler.model import PoolingModel

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One generated summary."""

    text: str
    num_source_tokens: int | None
    """Tokens of the document; None if it was cut, because the rest is not read."""
    read_ids: list[int]
    """Token ids that the model read, </s> included."""
    sentences: tuple[GroundedSentence, ...] | None = None
    """Its sentences with their sources, where they were asked for."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the text under `summary`, the lengths, and sentences with their sources."""
        lengths = {"num_source_tokens": self.num_source_tokens, "num_read_tokens": len(self.read_ids)}
        found = self.sentences
        grounded = {} if found is None else {"sentences": [sentence.as_dict() for sentence in found]}
        return {"summary": self.text, **lengths, **grounded}


def summarize(
    model: "PoolingModel",
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str | Head],
    generation: GenerationConfig,
    max_source_tokens: int | None = None,
    *,
    with_sources: bool = False,
) -> Iterator[Summary]:
    """Yield one summary per text, in order. `max_source_tokens` None: as many tokens as the tokenizer says fit.

    with_sources: find the passages that each sentence comes from, which encodes every document once more.
    """
    ends = SentenceEnds(token_bytes(tokenizer)) if with_sources else None
    limit, prefix = source_limit(tokenizer, max_source_tokens), leading_special_ids(tokenizer)
    for batch in batches(texts, generation.batch_size):
        heads = [head_of(text) if isinstance(text, str) else text for text in batch]
        sources = [leading_tokens(tokenizer, head, max(1, limit - 1 - len(prefix))) for head in heads]
        read = [cut(source.ids, limit, tokenizer.eos_token_id, prefix).tolist() for source in sources]
        written = generate_ids(model, tokenizer, read, generation)
        for source, read_ids, ids in zip(sources, read, written, strict=True):
            sentences = None
            if ends is not None:
                sentences = ground(model, tokenizer, ends, read_ids, source.offsets, ids, len(prefix))
            yield Summary(
                text=decode(ids, tokenizer).strip(),
                num_source_tokens=len(source.ids) if source.whole else None,
                read_ids=read_ids,
                sentences=sentences,
            )


def source_limit(tokenizer: PreTrainedTokenizerFast, max_source_tokens: int | None) -> int:
    """How many tokens of a document are read, </s> included."""
    return max_source_tokens or int(tokenizer.model_max_length)


def generate(
    model: "PoolingModel",
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[Sequence[int]],
    generation: GenerationConfig,
    *,
    synced: bool = False,
) -> list[str]:
    """The texts of `generate_ids`."""
    return [
        decode(ids, tokenizer).strip() for ids in generate_ids(model, tokenizer, sources, generation, synced=synced)
    ]


@torch.no_grad()
def generate_ids(
    model: "PoolingModel",
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[Sequence[int]],
    generation: GenerationConfig,
    *,
    synced: bool = False,
) -> list[list[int]]:
    """Results of beam search over one batch of token ids (</s> included), without what begins and ends a text.

    `synced`: continue until all ranks have finished, because each forward pass of ZeRO 3 needs all of them.
    """
    model.eval()
    input_ids, attention_mask = (each.to(model.device) for each in pad(sources, tokenizer.pad_token_id))
    generator: Any = model  # the library annotates `generate` for its own classes alone
    generated = generator.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **generation.arguments(),
        do_sample=False,
        **({"synced_gpus": True} if synced else {}),
    )
    none = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, generation.forced_bos_token_id}
    return [[token for token in row if token not in none] for row in generated.tolist()]


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items in order; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def source_ids(document: Document, tokenizer: PreTrainedTokenizerFast, config: Config) -> list[int]:
    """Token ids that the model reads: data.source_prefix_ids first, cut to data.max_source_tokens, </s> at the end."""
    data = config.data
    return cut(document.source, data.max_source_tokens, tokenizer.eos_token_id, data.source_prefix_ids).tolist()


def target_ids(document: Document, tokenizer: PreTrainedTokenizerFast, config: Config) -> list[int]:
    """Token ids of the document's summary: data.target_prefix_ids first, cut to data.max_target_tokens, </s> last."""
    assert document.target is not None
    data = config.data
    return cut(document.target, data.max_target_tokens, tokenizer.eos_token_id, data.target_prefix_ids).tolist()


def reference_text(document: Document, tokenizer: PreTrainedTokenizerFast) -> str:
    """The summary as its author wrote it: never cut, even if the model was trained on cut summaries."""
    if text := document.meta.get("target_text"):
        return text
    assert document.target is not None
    return decode(document.target, tokenizer)


def decode(ids: np.ndarray | list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of token ids; special tokens are left out."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))

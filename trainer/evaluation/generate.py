"""What a model reads of a document, and the texts that it writes about a batch of them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from transpooler.data_pipeline.limits import cut
from transpooler.data_pipeline.loading.collate import pad
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.text_tokens import without_frame
from transpooler.trainer.config import Config
from transpooler.trainer.config.evaluation import GenerationConfig

if TYPE_CHECKING:
    from transpooler.model import PoolingModel

Item = TypeVar("Item")


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
    return without_frame(generated.tolist(), tokenizer, generation.forced_bos_token_id)


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


def document_text(document: Document, tokenizer: PreTrainedTokenizerFast) -> str:
    """The whole document, never cut: as it was prepared, if its text was stored, else decoded."""
    return document.meta.get("source_text") or decode(document.source, tokenizer)


def reference_text(document: Document, tokenizer: PreTrainedTokenizerFast) -> str:
    """The summary as its author wrote it: never cut, even if the model was trained on cut summaries."""
    if text := document.meta.get("target_text"):
        return text
    assert document.target is not None
    return decode(document.target, tokenizer)


def decode(ids: np.ndarray | list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of token ids; special tokens are left out."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))

"""What the model reads of a document, what it should write, and what its summary is compared with."""

from typing import TYPE_CHECKING

from transpooler.data_pipeline.limits import cut

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

    from transpooler.data_pipeline.shards.dataset import Document
    from transpooler.trainer.config import Config


def source_ids(document: "Document", tokenizer: "PreTrainedTokenizerFast", config: "Config") -> list[int]:
    """Token ids that the model reads: cut to data.max_source_tokens, </s> at the end."""
    return cut(document.source, config.data.max_source_tokens, tokenizer.eos_token_id).tolist()


def target_ids(document: "Document", tokenizer: "PreTrainedTokenizerFast", config: "Config") -> list[int]:
    """Token ids of the document's summary: cut to data.max_target_tokens, </s> at the end."""
    assert document.target is not None
    return cut(document.target, config.data.max_target_tokens, tokenizer.eos_token_id).tolist()


def reference_text(document: "Document", tokenizer: "PreTrainedTokenizerFast") -> str:
    """The summary as its author wrote it: never cut, even if the model was trained on cut summaries."""
    if text := document.meta.get("target_text"):
        return text
    assert document.target is not None
    return decode(document.target, tokenizer)


def decode(ids: "np.ndarray", tokenizer: "PreTrainedTokenizerFast") -> str:
    """The text of token ids; special tokens are left out."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))

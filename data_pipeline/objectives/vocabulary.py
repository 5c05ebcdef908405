"""What objectives know of a tokenizer."""

from functools import cached_property
from typing import TYPE_CHECKING

from transpooler.data_pipeline.objectives.sentences import SentenceEnds
from transpooler.data_pipeline.text_tokens import token_bytes
from transpooler.data_pipeline.tokenizer import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Vocabulary:
    """Special ids, and tables over the vocabulary that are computed when they are first needed."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer
        self.special = special_ids(tokenizer)

    @cached_property
    def sentence_ends(self) -> SentenceEnds:
        """Where sentences end."""
        return SentenceEnds(token_bytes(self._tokenizer))

"""Summarizes texts with a loaded model: results in the order of the texts, as they are made.

Texts are read lazily, some batches ahead, so that documents of like length are padded together; memory does not grow
with their number. Which documents share a batch depends on their place alone, so that a run that goes on where another
one was interrupted gives what an undisturbed one gives, to the bit.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from transpooler.common import UserError, is_blank, progress, say
from transpooler.data_pipeline.limits import cut
from transpooler.data_pipeline.objectives.sentences import SentenceEnds
from transpooler.data_pipeline.text_tokens import (
    Head,
    Leading,
    head_of,
    leading_special_ids,
    leading_tokens,
    token_bytes,
)
from transpooler.trainer.config.evaluation import GenerationConfig
from transpooler.trainer.config.families.hub import find_weights
from transpooler.trainer.config.load import section_from_dict
from transpooler.trainer.evaluation.generate import batches, decode, generate_ids, source_limit
from transpooler.trainer.evaluation.highlights import read_back, token_weights
from transpooler.trainer.evaluation.long_documents import watch_reading
from transpooler.trainer.evaluation.sources import ground, trace
from transpooler.trainer.evaluation.summaries import Summaries, Summary
from transpooler.trainer.weights.generation import stored_generation
from transpooler.trainer.weights.models import keep_tokens, load_model, prepare_model, require_model
from transpooler.trainer.weights.token_ids import check_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from transpooler.model import PoolingModel

WINDOW_BATCHES = 8
"""Batches that are read ahead."""
Item = TypeVar("Item")


class _Document(NamedTuple):
    """The beginning of a document, as far as the model reads it."""

    head: Head
    tokens: Leading
    read_ids: list[int]


class Summarizer:
    """A model that summarizes texts; `load` makes one of an exported folder."""

    def __init__(
        self,
        model: "PoolingModel",
        tokenizer: "PreTrainedTokenizerFast",
        generation: GenerationConfig,
        *,
        max_source_tokens: int | None = None,
        with_sources: bool = False,
    ) -> None:
        """max_source_tokens None: as many tokens as the tokenizer says fit.

        with_sources: find the passages that each sentence comes from, which encodes every document once more.
        """
        check_token_ids(model.config, generation)
        self.model, self.tokenizer, self.generation = model, tokenizer, generation
        self._prefix = leading_special_ids(tokenizer)
        _check_limit(max_source_tokens, 2 + len(self._prefix))
        self.limit = source_limit(tokenizer, max_source_tokens)
        self._turn = threading.RLock()
        self._ends = SentenceEnds(token_bytes(tokenizer)) if with_sources else None

    def summarize(
        self,
        texts: str | Iterable[str],
        *,
        keep: float | None = None,
        sources: bool = True,
        max_source_tokens: int | None = None,
        progress: bool = True,
        **generation: Any,
    ) -> Summaries:
        """Summarize texts, in their order.

        keep: tokens that the last pooling keeps of each document, or below 1 a share (None: the largest budget);
        sources: also find where each sentence comes from; progress: show how far it is; generation: settings that
        replace the model's own, such as max_new_tokens, num_beams and batch_size (`GenerationConfig`).
        UserError names what is wrong with a setting or a text, TypeError a setting that there is not. Threads may share
        a model; they take turns.
        """
        known = asdict(self.generation)
        if unknown := generation.keys() - known.keys():
            raise TypeError(f"summarize() knows no {', '.join(sorted(unknown))}; settings are {', '.join(known)}")
        settings = section_from_dict(GenerationConfig, known | generation)
        if settings.precision != self.generation.precision:
            raise UserError("precision: weights are packed once; give it to transpooler.load")
        limit = self.limit if max_source_tokens is None else max_source_tokens
        other = Summarizer(self.model, self.tokenizer, settings, max_source_tokens=limit, with_sources=sources)
        several = _several(texts)
        with self._turn:  # the budget is the model's
            before = self.model.stages
            keep_tokens(self.model, keep, "keep")
            try:
                found = other.stream(map(_checked, itertools.count(), several), head_of)
                watched = watch(found, len(several) if isinstance(several, Sized) else None) if progress else found
                return Summaries(summary for _, summary in watched)
            finally:
                self.model.follow(before)

    def stream(
        self,
        items: Iterable[Item],
        head: Callable[[Item], Head],
        *,
        num_done: int = 0,
        window_batches: int = WINDOW_BATCHES,
    ) -> Iterator[tuple[Item, Summary]]:
        """Yield each item with its summary, in order, all but the first `num_done`, whose summaries are known.

        head: gives an item's text; window_batches: how many batches are read ahead, 1 = none.
        """
        remaining = num_done
        for window in batches(items, self.generation.batch_size * window_batches):
            if remaining < len(window):
                yield from self._summarize_window(window, head, remaining)
            remaining = max(0, remaining - len(window))

    def _summarize_window(
        self, window: Sequence[Item], head: Callable[[Item], Head], num_done: int
    ) -> Iterator[tuple[Item, Summary]]:
        documents = [self._read(head(item)) for item in window]
        by_length = sorted(range(len(window)), key=lambda place: len(documents[place].read_ids))
        # The batch of the document that is due next goes first.
        groups = sorted(batches(by_length, self.generation.batch_size), key=min)
        made: dict[int, Summary] = {}
        due = num_done
        for group in groups:
            if max(group) < num_done:
                continue
            made.update(zip(group, self._write([documents[place] for place in group]), strict=True))
            while due in made:
                yield window[due], made.pop(due)
                due += 1

    def _read(self, head: Head) -> _Document:
        tokens = leading_tokens(self.tokenizer, head, max(1, self.limit - 1 - len(self._prefix)))
        read = cut(tokens.ids, self.limit, self.tokenizer.eos_token_id, self._prefix)
        return _Document(head, tokens, read.tolist())

    def _write(self, documents: Sequence[_Document]) -> list[Summary]:
        """The summaries of one batch."""
        read = [document.read_ids for document in documents]
        with watch_reading(self.model, [len(ids) for ids in read]):
            written = generate_ids(self.model, self.tokenizer, read, self.generation)
        return [self._finish(document, ids) for document, ids in zip(documents, written, strict=True)]

    def _finish(self, document: _Document, written: list[int]) -> Summary:
        tokens, read_ids = document.tokens, document.read_ids
        plain = Summary(
            text=decode(written, self.tokenizer).strip(),
            num_source_tokens=len(tokens.ids) if tokens.whole else None,
            read_ids=read_ids,
        )
        if self._ends is None:
            return plain
        num_prefix = len(self._prefix)
        if written:
            traced = trace(self.model, read_ids, written)
            sentences = ground(traced, self.tokenizer, self._ends, read_ids, tokens.offsets, written, num_prefix)
            weights = [row[0].cpu().numpy() for row in traced.selection.stage_weights]
        else:
            sentences, weights = (), token_weights(self.model, read_ids)
        text = document.head(max((end for _, end in tokens.offsets), default=0))
        reading = read_back(self.model, text, tokens.offsets, weights, num_prefix)
        return replace(plain, sentences=sentences, reading=reading)


def _check_limit(tokens: Any, least: int) -> None:
    """UserError unless so many tokens of a document can be read (None: as many as the model was trained with)."""
    is_number = isinstance(tokens, Integral) and not isinstance(tokens, bool)
    if tokens is not None and not (is_number and tokens >= least):
        raise UserError(f"max_source_tokens is {tokens!r}; must be a whole number of at least {least}")


def _several(texts: Any) -> Iterable[Any]:
    """The texts of one or several; UserError for what holds none. Those of a list are checked before the first one."""
    if isinstance(texts, str):
        texts = [texts]
    elif not isinstance(texts, Iterable) or isinstance(texts, bytes | bytearray | Mapping):
        raise UserError(f"texts: {type(texts).__name__}; give a text, or several as a list")
    if isinstance(texts, Sequence):
        for number, text in enumerate(texts):
            _checked(number, text)
    return texts


def _checked(number: int, text: Any) -> str:
    """The text; UserError where it is none, or an empty one."""
    if not isinstance(text, str):
        raise UserError(f"texts[{number}]: {type(text).__name__}, not a text; give its words as str")
    if is_blank(text):
        raise UserError(f"texts[{number}]: empty; nothing to summarize, leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"holds half of a surrogate pair at character {error.start:,}, which is no character"
        raise UserError(f"texts[{number}]: {what}; decode the text anew") from None
    return text


def watch(found: Iterator[Item], total: int | None) -> Iterator[Item]:
    """Pass on summaries (of `total`, None: unknown) and show how many are made, and how many in a minute."""
    started, number, note = time.monotonic(), 0, ""
    with progress("summarize (documents)", total) as bar:
        for number, item in enumerate(found, 1):
            yield item
            note = rate(number, time.monotonic() - started)
            bar.advance(note=note)
    say(f"summarize: {number:,} documents made, {note}" if number else "summarize: nothing left to make")


def rate(num_documents: int, elapsed_s: float) -> str:
    """Such as '12.3 documents/min'."""
    return f"{60 * num_documents / max(elapsed_s, 1e-9):,.1f} documents/min"


def load(source: str | Path, *, precision: str = "fp32") -> Summarizer:
    """Load a model that summarizes: an exported folder, or the id of such a model on the Hugging Face hub.

    precision: of the weights that write, fp32, bf16 or int8 (`prepare_for_inference`).

    >>> summaries = transpooler.load("runs/papers/export").summarize(["A long text ..."], max_new_tokens=200)

    Raises UserError where there is none, or it is not whole.
    """
    if not isinstance(source, str | Path):
        raise UserError(f"source: {source!r}; give an exported folder, or the id of a model on the hub")
    folder = find_weights(source)
    require_model(folder)
    settings = section_from_dict(GenerationConfig, stored_generation(folder) | {"precision": precision})
    model, tokenizer = load_model(folder)
    return Summarizer(prepare_model(model, precision), tokenizer, settings)

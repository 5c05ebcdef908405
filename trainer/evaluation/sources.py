"""Where in the document a summary comes from: for each of its sentences, the passages that the decoder read for it.

Attention to the kept slots is followed back to the tokens that flowed into them. It says where a model looked while it
wrote, which is evidence to check a sentence by, no proof that the sentence follows from it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from transpooler.data_pipeline.objectives.sentences import SentenceEnds
from transpooler.model.grounding import Trace

if TYPE_CHECKING:
    from transpooler.model import PoolingModel

NUM_SOURCES = 3
WEIGHT_DIGITS = 4
Span = tuple[int, int]
"""[start, stop)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A passage of the document: a sentence, or a line."""

    start: int
    """First character, of the document as it was read."""
    end: int
    """The character after the last one."""
    weight: float
    """Its share of what the sentence read more than the summary as a whole did, 0..1."""


@dataclass(frozen=True, kw_only=True)
class GroundedSentence:
    """A sentence of a summary with its sources, the heaviest first."""

    text: str
    sources: tuple[Source, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        sources = [asdict(source) | {"weight": round(source.weight, WEIGHT_DIGITS)} for source in self.sources]
        return {"text": self.text, "sources": sources}


def trace(model: "PoolingModel", read_ids: Sequence[int], written: Sequence[int]) -> Trace:
    """What the model read of a document for each token of a text about it; see `model.trace`."""
    ids, text = (torch.as_tensor([list(part)], dtype=torch.int64, device=model.device) for part in (read_ids, written))
    return model.eval().trace(ids, text)


def ground(
    traced: Trace,
    tokenizer: PreTrainedTokenizerFast,
    ends: SentenceEnds,
    read_ids: Sequence[int],
    offsets: Sequence[Span],
    written: Sequence[int],
    num_prefix: int = 0,
) -> tuple[GroundedSentence, ...]:
    """The sentences of a text that a model wrote, with up to three sources each.

    traced: `trace` of read_ids and written; read_ids: what the model read, of which `num_prefix` and the last are not
    of the document; offsets: characters of each of the document's tokens; written: the ids of the text, at least one,
    without those that begin and end it.
    """
    if not offsets:
        return ()
    sentences = split_sentences(written, ends)
    tokens = np.asarray(read_ids[num_prefix : num_prefix + len(offsets)])
    passages = split_sentences(tokens, ends)
    weights_KN = weigh_tokens(traced, sentences)[:, num_prefix : num_prefix + len(offsets)]
    weights_KP = np.add.reduceat(weights_KN, [start for start, _ in passages], axis=1)
    totals_K = weights_KP.sum(1).clip(min=1e-12)
    found = []
    for span, row, total in zip(sentences, weights_KP, totals_K, strict=True):
        best = [passage for passage in np.argsort(-row, kind="stable")[:NUM_SOURCES] if row[passage] > 0]
        places = [(offsets[passages[at][0]][0], offsets[passages[at][1] - 1][1], float(row[at] / total)) for at in best]
        sources = tuple(Source(start=start, end=end, weight=weight) for start, end, weight in places)
        text = str(tokenizer.decode(list(written[slice(*span)]), skip_special_tokens=True)).strip()
        found.append(GroundedSentence(text=text, sources=sources))
    return tuple(found)


def weigh_tokens(traced: Trace, spans: Sequence[Span]) -> np.ndarray:
    """(K, N) float64: how much of each source token was read for each of K spans of a text, more than for all of it.

    What every sentence reads alike, such as a slot on which attention rests, says nothing about one of them; a text of
    one span is taken as it is.
    """
    attention_TS, (flow_BN, slots_BN, _) = traced
    spans_KS = torch.stack([attention_TS[start:stop].mean(0) for start, stop in spans])
    if len(spans) > 1:
        spans_KS = (spans_KS - attention_TS.mean(0)).clamp(min=0)
    slots_N, flow_N = slots_BN[0], flow_BN[0]
    held_N = slots_N.clamp(min=0)
    inflow_S = torch.zeros_like(attention_TS[0]).index_add(0, held_N, flow_N * (slots_N >= 0))
    share_N = torch.where(slots_N >= 0, flow_N / inflow_S[held_N].clamp(min=1e-12), 0)
    return (spans_KS[:, held_N] * share_N).double().cpu().numpy()


def split_sentences(ids: Sequence[int] | np.ndarray, ends: SentenceEnds) -> list[Span]:
    """Sentences of a text, in tokens; none of a text without any."""
    array = np.asarray(ids, np.int64)
    if not len(array):
        return []
    borders = [0, *ends.find(array).tolist(), len(array)]
    return list(pairwise(borders))

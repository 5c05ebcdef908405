"""Which parts of a document the poolers kept: pieces of text with the weight of each after every stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from transpooler.model.ops.schedule import PoolingStage

if TYPE_CHECKING:
    from transpooler.model import PoolingModel

DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model read of a document that was given as text, and how much of each token the poolers kept."""

    text: str
    """Up to the last character that was read."""
    starts: np.ndarray
    """(N,) int64: first character of each token in `text`, not descending."""
    stages: list[np.ndarray]
    """(N,) float32 in 0..1 after each stage: how much of a token flowed into its slot."""
    stage_names: list[str]

    def highlight(self) -> dict[str, Any]:
        """Pieces and weights as `highlight` gives them, but in the characters of the document as it was given."""
        # Tokens that share a character, or have none of their own, are one piece; the first takes what stands before.
        first = [0, *(1 + np.flatnonzero(np.diff(self.starts))).tolist()] if len(self.starts) else []
        borders = [0, *self.starts[first[1:]].tolist(), len(self.text)] if first else []
        return {
            "pieces": [self.text[start:end] for start, end in pairwise(borders)],
            "stages": [np.maximum.reduceat(row, first).tolist() if first else [] for row in self.stages],
            "stage_names": self.stage_names,
        }


def read_back(
    model: "PoolingModel",
    text: str,
    offsets: Sequence[tuple[int, int]],
    stage_weights: Sequence[np.ndarray],
    num_prefix: int,
) -> Reading:
    """The `Reading` of a text: characters of its tokens, and (N,) weights of all that was read, others included."""
    starts = np.maximum.accumulate(np.array([start for start, _ in offsets], np.int64))
    num_read = len(stage_weights[0]) if stage_weights else 0
    return Reading(
        text=text[: max((end for _, end in offsets), default=0)],
        starts=starts,
        stages=[row[num_prefix : num_prefix + len(starts)].astype(np.float32) for row in stage_weights],
        stage_names=stage_names(model.stages, num_read),
    )


def highlight(
    model: "PoolingModel",
    tokenizer: PreTrainedTokenizerFast,
    ids: Sequence[int],
    num_tokens: int | None,
) -> dict[str, Any]:
    """Weights of one document's tokens, for a report that then needs no model.

    `ids` is what the model reads, </s> included; `num_tokens` is the length of the whole document, None if it is
    unknown. Returns pieces (their concatenation is the text that was read), one list of weights in 0..1 per stage, and
    a name per stage.
    """
    stages = token_weights(model, ids)
    spans = text_pieces(tokenizer, list(ids)[:-1])
    starts = [start for _, start in spans]
    return {
        "pieces": [text for text, _ in spans],
        "stages": [np.maximum.reduceat(row[:-1], starts).round(DIGITS).tolist() if starts else [] for row in stages],
        "stage_names": stage_names(model.stages, len(ids)),
        "num_tokens": num_tokens,
        "num_read_tokens": len(ids) - 1,
    }


def token_weights(model: "PoolingModel", ids: Sequence[int]) -> list[np.ndarray]:
    """How much of each token of one document flowed into its slot, after each stage: (N,) float64."""
    input_ids = torch.as_tensor([list(ids)], dtype=torch.int64, device=model.device)
    model.eval()
    selection = model.select(input_ids, torch.ones_like(input_ids))
    return [weights[0].double().cpu().numpy() for weights in selection.stage_weights]


def stage_names(pooling: Sequence[PoolingStage], num_tokens: int) -> list[str]:
    """Such as "after layer 2: 512 of 2,048 tokens", per stage, for a document of `num_tokens` tokens."""
    names, slots = [], num_tokens
    for stage in pooling:
        slots = stage.slots(slots)
        names.append(f"after layer {stage.after_layer}: {slots:,} of {num_tokens:,} tokens")
    return names


def text_pieces(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[tuple[str, int]]:
    """(text, first token) of the shortest runs of tokens that decode to whole characters.

    A token may hold half a character, and may decode differently after another token than alone (leading spaces), so
    a piece is the text that decoding gains when its tokens follow those of the piece before.
    """
    pieces: list[tuple[str, int]] = []
    previous = start = 0
    for end in range(1, len(ids) + 1):
        before, after = _decode(tokenizer, ids[previous:start]), _decode(tokenizer, ids[previous:end])
        if len(after) > len(before) and not (after.endswith("\ufffd") and end < len(ids) and end - start < 8):
            pieces.append((after[len(before) :], start))
            previous, start = start, end
    return pieces


def _decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

"""`model.summarize` of an exported model: summaries with their sources, by the code in its folder alone.

`Summarizer` does more (streams, resumes, shows pages) and gives the same summaries.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from transpooler.data_pipeline.limits import cut
from transpooler.data_pipeline.objectives.sentences import SentenceEnds
from transpooler.data_pipeline.text_tokens import (
    head_of,
    leading_special_ids,
    leading_tokens,
    token_bytes,
    without_frame,
)
from transpooler.trainer.evaluation.sources import ground, trace


def summarize(
    self: Any,
    texts: str | Sequence[str],
    *,
    tokenizer: Any = None,
    keep: float | None = None,
    sources: bool = True,
    max_source_tokens: int | None = None,
    batch_size: int = 8,
    progress: bool = True,
    **generation: Any,
) -> list[dict[str, Any]]:
    """Summarize texts: for each a mapping with summary, num_read_tokens and, with `sources`, sentences.

    A sentence has a text and up to three sources, passages of the document: start and end in its characters, and a
    weight in 0..1. tokenizer: None for the one in the model's folder; keep: tokens that the last pooling keeps, or
    below 1 a share (None: the largest budget); generation: settings of `generate`, such as max_new_tokens.
    Raises ValueError for a text without words.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if empty := [number for number, text in enumerate(texts) if not text.strip()]:
        raise ValueError(f"texts[{empty[0]}]: empty; nothing to summarize, leave it out")
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(self.name_or_path, trust_remote_code=True)
    prefix, ends = leading_special_ids(tokenizer), SentenceEnds(token_bytes(tokenizer)) if sources else None
    limit = max_source_tokens or tokenizer.model_max_length
    tokens = [leading_tokens(tokenizer, head_of(text), max(1, limit - 1 - len(prefix))) for text in texts]
    read = [cut(each.ids, limit, tokenizer.eos_token_id, prefix).tolist() for each in tokens]
    order = sorted(range(len(texts)), key=lambda number: len(read[number]))  # documents of like length share a batch
    found: list[dict[str, Any]] = [{} for _ in texts]
    before = self.stages
    self.eval().keep(keep)
    try:
        with tqdm(total=len(texts), desc="summarize", disable=not progress) as bar:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                written = _write(self, tokenizer, [read[number] for number in batch], generation)
                for number, ids in zip(batch, written, strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
                    found[number] = {"summary": text, "num_read_tokens": len(read[number])}
                    if ends is not None:
                        place = (tokenizer, ends, read[number], tokens[number].offsets, ids, len(prefix))
                        grounded = ground(trace(self, read[number], ids), *place) if ids else ()
                        found[number]["sentences"] = [sentence.as_dict() for sentence in grounded]
                bar.update(len(batch))
    finally:
        self.follow(before)
    return found


@torch.no_grad()
def _write(model: Any, tokenizer: Any, read: list[list[int]], generation: dict[str, Any]) -> list[list[int]]:
    """The ids written about each document of a batch, without those that begin and end a text."""
    padded = tokenizer.pad({"input_ids": read}, padding_side="right", return_tensors="pt").to(model.device)
    rows = model.generate(
        input_ids=padded.input_ids, attention_mask=padded.attention_mask, do_sample=False, **generation
    )
    forced = getattr(model.generation_config, "forced_bos_token_id", None)
    return without_frame(rows.tolist(), tokenizer, forced)

"""What an evaluation knows of each document: its summary beside the reference and lead-n, and their scores."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from transpooler.common import UserError, progress
from transpooler.data_pipeline.objectives.sentences import SentenceEnds
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.text_tokens import token_bytes
from transpooler.trainer.config import Config
from transpooler.trainer.engine.ranks import Ranks, raise_on_all_ranks
from transpooler.trainer.evaluation.evidence import evidence_recall
from transpooler.trainer.evaluation.generate import (
    batches,
    decode,
    document_text,
    generate_ids,
    reference_text,
    source_ids,
)
from transpooler.trainer.evaluation.highlights import text_pieces, token_weights
from transpooler.trainer.evaluation.own_metrics import OwnMetric, measure_all
from transpooler.trainer.evaluation.rouge import lead, rouge
from transpooler.trainer.evaluation.sources import ground, trace

if TYPE_CHECKING:
    from transpooler.model import PoolingModel


def make_rows(
    model: "PoolingModel",
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    lead_words: int,
    config: Config,
    ranks: Ranks,
    metrics: Sequence[OwnMetric] = (),
) -> list[dict[str, Any]]:
    """Summarize the documents, which the ranks share, and score the summaries: a row each, in corpus order.

    UserError on all ranks if one of `metrics` fails.
    """
    work = ranks.share(list(batches(documents, config.generation.batch_size)))
    scorer = _Scorer(tokenizer, lead_words, config.evaluation.rouge, metrics)
    evidence, grounds = _evidence_finder(model, tokenizer, config), _source_finder(model, tokenizer, config)
    rows: list[tuple[int, dict[str, Any]]] = []
    error: UserError | None = None
    try:
        with progress("summaries", sum(len(batch) for _, batch in work)) as bar:
            for number, batch in work:
                sources = [source_ids(document, tokenizer, config) for document in batch]
                written = generate_ids(model, tokenizer, sources, config.generation)
                for document, ids, text_ids in zip(batch, sources, written, strict=True):
                    row = scorer.score(document, decode(text_ids, tokenizer).strip())
                    rows.append((number, row | evidence(document, ids) | grounds(ids, text_ids)))
                bar.advance(len(batch))
    except UserError as caught:
        error = caught
    if ranks.size > 1:
        raise_on_all_ranks(error)
    elif error is not None:
        raise error
    return ranks.gather_in_order(rows)


def try_metrics(
    metrics: Sequence[OwnMetric], documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Call the metrics with the first document and its reference, so that a mistake shows before hours of decoding."""
    for document in documents[:1] if metrics else ():
        reference = reference_text(document, tokenizer)
        measure_all(metrics, document_text(document, tokenizer), reference, reference, name_of(document))


def name_of(document: Document) -> str:
    """The id that its corpus gave it, or else its key."""
    return str(document.meta.get("id") or document.key)


class _Scorer(NamedTuple):
    """Compares summaries, and lead-n, with references."""

    tokenizer: PreTrainedTokenizerFast
    lead_words: int
    dialect: str
    metrics: Sequence[OwnMetric]

    def score(self, document: Document, text: str) -> dict[str, Any]:
        """The row of one document."""
        reference = reference_text(document, self.tokenizer)
        baseline = lead(decode(document.source, self.tokenizer), self.lead_words)
        row = {
            "key": document.key,
            "id": document.meta.get("id"),
            "generated": text,
            "reference": reference,
            "lead": baseline,
        }
        whole = document_text(document, self.tokenizer) if self.metrics else ""
        for prefix, written in (("", text), ("lead_", baseline)):
            row[f"{prefix}rouge"] = rouge(reference, written, self.dialect)
            if self.metrics:
                row[f"{prefix}metrics"] = measure_all(self.metrics, whole, reference, written, name_of(document))
        return row


def _evidence_finder(
    model: "PoolingModel", tokenizer: PreTrainedTokenizerFast, config: Config
) -> Callable[[Document, Sequence[int]], dict[str, float | None]]:
    """What finds a document's evidence recall, of the ids that are read; nothing where the model does not pool."""
    if not config.model.pooling:
        return lambda document, ids: {}
    table = token_bytes(tokenizer)

    def find(document: Document, ids: Sequence[int]) -> dict[str, float | None]:
        assert document.target is not None
        weights = token_weights(model, ids)[-1]
        return {"evidence_recall": evidence_recall(ids[:-1], weights[:-1], document.target.tolist(), table)}

    return find


def _source_finder(
    model: "PoolingModel", tokenizer: PreTrainedTokenizerFast, config: Config
) -> Callable[[Sequence[int], Sequence[int]], dict[str, Any]]:
    """What finds the document as it was read, and the sentences of a summary with their sources, where asked for."""
    if not config.evaluation.sources:
        return lambda ids, written: {}
    ends, num_prefix = SentenceEnds(token_bytes(tokenizer)), len(config.data.source_prefix_ids)

    def find(ids: Sequence[int], written: Sequence[int]) -> dict[str, Any]:
        text, offsets = _locate_tokens(tokenizer, ids[num_prefix:-1])
        if not written:
            return {"document": text, "sentences": []}
        traced = trace(model, ids, written)
        sentences = ground(traced, tokenizer, ends, ids, offsets, written, num_prefix)
        return {"document": text, "sentences": [sentence.as_dict() for sentence in sentences]}

    return find


def _locate_tokens(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of token ids, and the characters of each token; tokens of one character share them."""
    pieces = text_pieces(tokenizer, ids)
    offsets: list[tuple[int, int]] = []
    end = 0
    for (text, first), (_, following) in zip(pieces, [*pieces[1:], ("", len(ids))], strict=True):
        start, end = end, end + len(text)
        offsets += [(start, end)] * (following - first)
    return "".join(text for text, _ in pieces), offsets

"""What an evaluation knows of each document: its summary beside the reference and lead-n, and their scores."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

from transpooler.common import progress
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.tokenizer import token_bytes
from transpooler.trainer.config import Config
from transpooler.trainer.engine.ranks import Ranks
from transpooler.trainer.evaluation.evidence import evidence_recall
from transpooler.trainer.evaluation.generate import batches, decode, generate, reference_text, source_ids
from transpooler.trainer.evaluation.highlights import token_weights
from transpooler.trainer.evaluation.rouge import lead, rouge

if TYPE_CHECKING:
    from transpooler.model import PoolingModel


def make_rows(
    model: "PoolingModel",
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    lead_words: int,
    config: Config,
    ranks: Ranks,
) -> list[dict[str, Any]]:
    """Summarize the documents, which the ranks share, and score the summaries: a row each, in corpus order."""
    work = ranks.share(list(batches(documents, config.generation.batch_size)))
    score = partial(rouge, dialect=config.evaluation.rouge)
    evidence = _evidence_finder(model, tokenizer, config)
    rows = []
    with progress("summaries", sum(len(batch) for _, batch in work)) as bar:
        for number, batch in work:
            sources = [source_ids(document, tokenizer, config) for document in batch]
            texts = generate(model, tokenizer, sources, config.generation)
            for document, ids, text in zip(batch, sources, texts, strict=True):
                reference = reference_text(document, tokenizer)
                baseline = lead(decode(document.source, tokenizer), lead_words)
                row = {
                    "key": document.key,
                    "id": document.meta.get("id"),
                    "generated": text,
                    "reference": reference,
                    "lead": baseline,
                    "rouge": score(reference, text),
                    "lead_rouge": score(reference, baseline),
                }
                rows.append((number, row | evidence(document, ids)))
            bar.advance(len(batch))
    return ranks.gather_in_order(rows)


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

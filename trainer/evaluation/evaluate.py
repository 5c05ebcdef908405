"""Held-out evaluation: ROUGE of generated summaries beside lead-n, and the loss with right and with wrong summaries.

Writes three files, each complete or absent: generated.jsonl (all texts), metrics.json (all numbers), highlights.json
(what the poolers kept of the first documents). Texts and a few numbers per document are kept, never logits.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transpooler.common.errors import UserError
from transpooler.common.files import atomic_write, write_json
from transpooler.common.log import progress, say, set_quiet
from transpooler.data_pipeline.loading.collate import IGNORED_LABEL
from transpooler.data_pipeline.order.corpus import open_dataset, split_exists
from transpooler.trainer.config import Config
from transpooler.trainer.engine.sharing import ALONE, Ranks, ranks_of_environment
from transpooler.trainer.evaluation.generate import batches, generate, pad_batch
from transpooler.trainer.evaluation.highlights import highlight
from transpooler.trainer.evaluation.rouge import ROUGE_TYPES, bootstrap, count_words, lead, rouge
from transpooler.trainer.run_folder import EvaluationFolder

FORMAT = 1
NUM_HIGHLIGHTED = 3
LEAD_LENGTH_DOCUMENTS = 1000
PLAIN_WIDTH = 120


def evaluate(config: Config, *, model_folder: Path | None, output: Path) -> dict[str, Any]:
    """Evaluate an exported model (None: the untrained one) on `config.evaluation.split`; returns the numbers.

    The lead-n baseline takes n = mean words of the references of data.validation_split (first 1,000 documents), so
    that it learns nothing from the evaluated split; without such a split, of the evaluated one.

    Ranks share the batches (WORLD_SIZE and its kin from the environment); all return the same numbers, whatever their
    number, and rank 0 writes the files.
    """
    ranks = _ranks(config)
    model, tokenizer = _model(config, model_folder)
    documents = _documents(config, tokenizer, model_folder)
    lead_words = _mean_reference_words(config, documents, tokenizer)
    loss, shuffled_loss = held_out_losses(model, tokenizer, documents, config, ranks)
    rows = _generated(model, tokenizer, documents, lead_words, config, ranks)
    results = {
        "format": FORMAT,
        "model": "untrained" if model_folder is None else str(model_folder),
        "trained": model_folder is not None,
        "split": config.evaluation.split,
        "num_documents": len(rows),
        "loss": loss,
        "shuffled_loss": shuffled_loss,
        "lead_words": lead_words,
        "mean_words": {name: float(np.mean([count_words(row[name]) for row in rows])) for name in _TEXTS},
        "rouge": _intervals(rows, "rouge", config.seed),
        "lead_rouge": _intervals(rows, "lead_rouge", config.seed),
        "generation": dataclasses.asdict(config.generation),
    }
    if ranks.rank:
        return results
    files = EvaluationFolder(output)
    with atomic_write(files.generated) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_write(files.highlights) as file:
        json.dump(_highlights(model, tokenizer, documents, config), file, ensure_ascii=False)
    write_json(files.metrics, results)
    return results


_TEXTS = ("generated", "reference", "lead")


@torch.no_grad()
def held_out_losses(
    model: Any, tokenizer: Any, documents: Sequence[Any], config: Config, ranks: Ranks = ALONE
) -> tuple[float, float | None]:
    """Mean loss per target token, and the same with every document given another document's summary.

    The second is None for a single document. A model that ignores its input has equal losses.
    """
    model.eval()
    partners = derangement(len(documents), config.seed)
    work = ranks.share(list(batches(range(len(documents)), config.generation.batch_size)))
    sums = []
    num_tokens = sum(len(_target(document, tokenizer, config)) for document in documents)
    with progress("held-out loss", sum(len(batch) for _, batch in work)) as bar:
        for number, batch in work:
            sources = [source_ids(documents[i], tokenizer, config) for i in batch]
            input_ids, attention_mask = pad_batch(sources, tokenizer.pad_token_id, model.device)
            losses = []
            for chosen in (batch, [partners[i] for i in batch]):
                targets = [_target(documents[i], tokenizer, config) for i in chosen]
                labels, _ = pad_batch(targets, IGNORED_LABEL, model.device)
                summed = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, num_items_in_batch=1)
                losses.append(float(summed.loss))
            sums.append((number, losses))
            bar.advance(len(batch))
    # Both sums run over the same summaries, so over the same number of tokens.
    loss, shuffled = np.sum(ranks.gather_in_order(sums), axis=0) / num_tokens
    return float(loss), float(shuffled) if len(documents) > 1 else None


def derangement(count: int, seed: int) -> list[int]:
    """A permutation that leaves nothing in its place (one random cycle); [0] for a single item."""
    order = np.random.default_rng(seed).permutation(count)
    partners = np.empty(count, dtype=np.int64)
    partners[order] = np.roll(order, 1)
    return partners.tolist()


def print_table(*evaluations: dict[str, Any]) -> None:
    """Print evaluations of one split as a table on standard output (plain text without a terminal)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    first = evaluations[0]
    console = Console(width=None if Console().is_terminal else PLAIN_WIDTH)
    frame = box.HEAVY_HEAD if console.is_terminal else box.ASCII2
    table = Table(
        box=frame, title=f"{first['split']}, {first['num_documents']} documents: ROUGE F1 in % (95 % interval)"
    )
    for name in ("", *ROUGE_TYPES, "words", "loss", "shuffled"):
        table.add_column(name, justify="right" if name else "left")
    for results in evaluations:
        shuffled = results["shuffled_loss"]
        losses = (f"{results['loss']:.3f}", "" if shuffled is None else f"{shuffled:.3f}")
        table.add_row("model" if results["trained"] else "untrained", *_cells(results, "rouge", "generated"), *losses)
    table.add_row(f"lead-{first['lead_words']}", *_cells(first, "lead_rouge", "lead"))
    console.print(table)


def _cells(results: dict[str, Any], scores: str, text: str) -> list[str]:
    return [*(_percent(results[scores][name]) for name in ROUGE_TYPES), f"{results['mean_words'][text]:.0f}"]


def _percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} ({100 * interval['low']:.1f}-{100 * interval['high']:.1f})"


def _ranks(config: Config) -> Ranks:
    """Join the ranks that the environment describes, if any."""
    if ranks_of_environment() == 1:
        return ALONE
    from transpooler.trainer.engine.distributed import init_distributed

    ranks = Ranks(*init_distributed(config.engine))
    set_quiet(bool(ranks.rank))
    return ranks


def _model(config: Config, folder: Path | None) -> tuple[Any, Any]:
    from transpooler.trainer.weights.models import build_model, default_device, load_model

    if folder is not None:
        return load_model(folder)
    from transpooler.data_pipeline.order.corpus import tokenizer_folder
    from transpooler.data_pipeline.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder(config.data))
    return build_model(config, tokenizer).to(default_device()), tokenizer


def _documents(config: Config, tokenizer: Any, model_folder: Path | None) -> list[Any]:
    """The documents to evaluate; a UserError if they have no summaries or belong to another tokenizer."""
    from transpooler.data_pipeline.tokenizer import fingerprint

    split = config.evaluation.split
    dataset = open_dataset(config.data, config.data.shards, split)
    folder = dataset.folder
    if fingerprint(tokenizer) != dataset.index["tokenizer_fingerprint"]:
        raise UserError(
            f"{model_folder}: its tokenizer is not the one of {folder}; prepare the documents with it again"
        )
    count = min(len(dataset), config.evaluation.max_documents or len(dataset))
    documents = [dataset.read(number) for number in range(count)]
    if not documents or any(document.target is None for document in documents):
        raise UserError(f"{folder}: has documents without summaries; evaluation.split must name a split with summaries")
    return documents


def _mean_reference_words(config: Config, documents: Sequence[Any], tokenizer: Any) -> int:
    validation = config.data.validation_split
    shards = config.data.shards
    if validation and validation != config.evaluation.split and split_exists(config.data, shards, validation):
        dataset = open_dataset(config.data, shards, validation)
        held_out = [dataset.read(number) for number in range(min(len(dataset), LEAD_LENGTH_DOCUMENTS))]
        documents = [document for document in held_out if document.target is not None] or documents
    return max(1, round(np.mean([count_words(reference_text(document, tokenizer)) for document in documents])))


def _generated(
    model: Any, tokenizer: Any, documents: Sequence[Any], lead_words: int, config: Config, ranks: Ranks
) -> list[dict[str, Any]]:
    """One row per document, in corpus order."""
    work = ranks.share(list(batches(documents, config.generation.batch_size)))
    rows = []
    with progress("summaries", sum(len(batch) for _, batch in work)) as bar:
        for number, batch in work:
            sources = [source_ids(document, tokenizer, config) for document in batch]
            texts = generate(model, tokenizer, sources, config.generation)
            for document, text in zip(batch, texts, strict=True):
                reference = reference_text(document, tokenizer)
                baseline = lead(tokenizer.decode(document.source, skip_special_tokens=True), lead_words)
                row = {
                    "key": document.key,
                    "id": document.meta.get("id"),
                    "generated": text,
                    "reference": reference,
                    "lead": baseline,
                    "rouge": rouge(reference, text),
                    "lead_rouge": rouge(reference, baseline),
                }
                rows.append((number, row))
            bar.advance(len(batch))
    return ranks.gather_in_order(rows)


def _highlights(model: Any, tokenizer: Any, documents: Sequence[Any], config: Config) -> list[dict[str, Any]]:
    if not config.model.pooling:
        say("no pooling in this model: highlights.json stays empty")
        return []
    return [
        {
            "key": document.key,
            "id": document.meta.get("id"),
            **highlight(model, tokenizer, source_ids(document, tokenizer, config), len(document.source)),
        }
        for document in documents[:NUM_HIGHLIGHTED]
    ]


def _intervals(rows: Sequence[dict[str, Any]], key: str, seed: int) -> dict[str, dict[str, float]]:
    return {name: dataclasses.asdict(bootstrap([row[key][name] for row in rows], seed=seed)) for name in ROUGE_TYPES}


def source_ids(document: Any, tokenizer: Any, config: Config) -> list[int]:
    """What the model reads of a document: cut to the limit, </s> at its end."""
    return [*document.source[: config.data.max_source_tokens - 1].tolist(), tokenizer.eos_token_id]


def _target(document: Any, tokenizer: Any, config: Config) -> list[int]:
    return [*document.target[: config.data.max_target_tokens - 1].tolist(), tokenizer.eos_token_id]


def reference_text(document: Any, tokenizer: Any) -> str:
    """The summary as its author wrote it: never cut, though the model may have been trained on cut ones."""
    return document.meta.get("target_text") or tokenizer.decode(document.target, skip_special_tokens=True)

"""Held-out evaluation: ROUGE of generated summaries beside lead-n, and the loss with right and with wrong summaries.

Writes the three files of `EvaluationFolder`, each complete or absent. Memory holds texts and a few numbers per
document, never logits.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from transpooler.common import UserError, atomic_write, delay_signals, percent, print_table, say, set_quiet
from transpooler.data_pipeline.order.corpus import open_dataset, split_exists, tokenizer_folder
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.tokenizer import fingerprint, load_tokenizer
from transpooler.trainer.config import Config
from transpooler.trainer.engine.ranks import ALONE, Ranks
from transpooler.trainer.evaluation.generate import reference_text, source_ids
from transpooler.trainer.evaluation.highlights import highlight
from transpooler.trainer.evaluation.losses import held_out_losses
from transpooler.trainer.evaluation.own_metrics import load_metrics
from transpooler.trainer.evaluation.rouge import ROUGE_TYPES, bootstrap, count_words, dialect_of
from transpooler.trainer.evaluation.rows import make_rows, try_metrics
from transpooler.trainer.guards.run_lock import hold
from transpooler.trainer.run_folder import EvaluationFolder

if TYPE_CHECKING:
    from transpooler.model import PoolingModel

FORMAT = 1
NUM_HIGHLIGHTED = 3
LEAD_LENGTH_DOCUMENTS = 1000
Rows = Sequence[Mapping[str, Any]]
_TEXTS = ("generated", "reference", "lead")


def evaluate(config: Config, *, model_folder: Path | None, output: Path, keep: float | None = None) -> dict[str, Any]:
    """Evaluate an exported model (None: the untrained one) on `config.evaluation.split`; returns the numbers.

    The model keeps `keep` tokens, or this share, of each document (None: its largest budget).

    For the lead-n baseline, n is the mean number of words of the references of data.validation_split (first 1,000
    documents), so that it learns nothing from the evaluated split; without such a split, of the evaluated one.

    The ranks that the environment describes (WORLD_SIZE, ...) share the batches. All return the same numbers, which do
    not depend on how many ranks there are; rank 0 writes the files into `output`.
    """
    with hold(EvaluationFolder(output).lock, "choose --output"):
        return _evaluate(config, model_folder, EvaluationFolder(output), keep)


def _evaluate(config: Config, model_folder: Path | None, files: EvaluationFolder, keep: float | None) -> dict[str, Any]:
    metrics = load_metrics(config.evaluation.metrics)  # first, because a mistake in them is found at once
    ranks = _join_ranks(config)
    model, tokenizer = _load_model(config, model_folder, keep)
    documents = _read_documents(config, tokenizer, model_folder)
    try_metrics(metrics, documents, tokenizer)
    lead_words = _mean_reference_words(config, documents, tokenizer)
    loss, shuffled_loss = held_out_losses(model, tokenizer, documents, config, ranks)
    start = time.perf_counter()
    rows = make_rows(model, tokenizer, documents, lead_words, config, ranks, metrics)
    elapsed_s = time.perf_counter() - start
    results = {
        "format": FORMAT,
        "model": "untrained" if model_folder is None else str(model_folder),
        "trained": model_folder is not None,
        "split": config.evaluation.split,
        "keep": keep,
        "kept_tokens": _mean_kept(model, tokenizer, documents, config),
        "num_documents": len(rows),
        "loss": loss,
        "shuffled_loss": shuffled_loss,
        "lead_words": lead_words,
        "mean_words": {name: float(np.mean([count_words(row[name]) for row in rows])) for name in _TEXTS},
        "rouge_dialect": config.evaluation.rouge,
        "rouge": _intervals(rows, "rouge", config.seed),
        "lead_rouge": _intervals(rows, "lead_rouge", config.seed),
        **_own_intervals(rows, config),
        "evidence_recall": _evidence_interval(rows, config.seed),
        "generation": dataclasses.asdict(config.generation)
        | {"suppress_tokens": list(config.generation.suppress_tokens)},  # as JSON reads it back
    }
    if keep is not None:  # a point of a curve, in which time is what a budget is for
        results["seconds_per_document"] = elapsed_s / max(1, len(rows))
    if ranks.rank:
        return results
    _write(files, results, rows, _highlight_documents(model, tokenizer, documents, config))
    return results


def _write(files: EvaluationFolder, results: Mapping[str, Any], rows: Rows, highlights: Rows) -> None:
    """Write the files, the numbers last: where they are, all three are of one evaluation."""
    with (
        delay_signals(),
        atomic_write(files.metrics) as metrics,
        atomic_write(files.highlights) as marks,
        atomic_write(files.generated) as generated,
    ):
        json.dump(results, metrics, indent=2, ensure_ascii=False)
        json.dump(highlights, marks, ensure_ascii=False)
        generated.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for file in (metrics, marks, generated):
            file.flush()  # an earlier evaluation stays where the disk is full
        files.metrics.unlink(missing_ok=True)


def print_evaluations(*evaluations: dict[str, Any]) -> None:
    """Print evaluations of one split, a row each, and the lead-n baseline on standard output."""
    first = evaluations[0]
    rows = []
    for results in evaluations:
        shuffled = results["shuffled_loss"]
        cells = {"loss": f"{results['loss']:.3f}", "shuffled": "" if shuffled is None else f"{shuffled:.3f}"}
        if "seconds_per_document" in results:
            cells["s/document"] = f"{results['seconds_per_document']:.2f}"
        if (recall := results.get("evidence_recall")) is not None:
            cells["evidence"] = _cell(recall)
        name = "model" if results["trained"] else "untrained"
        if (keep := results.get("keep")) is not None:
            name += f", keep {keep:g}"
        rows.append(_row(name, results, "rouge", "generated") | cells)
    rows.append(_row(f"lead-{first['lead_words']}", first, "lead_rouge", "lead"))
    title = f"{first['split']}, {first['num_documents']} documents: ROUGE F1 in % (95 % interval), {dialect_of(first)}"
    print_table(title, rows)


def _join_ranks(config: Config) -> Ranks:
    """Join the ranks that the environment describes, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from transpooler.trainer.engine.distributed import init_distributed

    ranks = Ranks(*init_distributed(config.engine))
    set_quiet(bool(ranks.rank))
    return ranks


def _load_model(
    config: Config, folder: Path | None, keep: float | None
) -> tuple["PoolingModel", PreTrainedTokenizerFast]:
    from transpooler.trainer.weights.models import build_model, default_device, keep_tokens, load_model, prepare_model
    from transpooler.trainer.weights.token_ids import check_token_ids

    model: Any  # the library's annotation of `to` knows no devices
    if folder is not None:
        model, tokenizer = load_model(folder, keep)
    else:
        tokenizer = load_tokenizer(tokenizer_folder(config.data))
        model = build_model(config, tokenizer).to(default_device())  # type: ignore[arg-type]
        keep_tokens(model, keep)
    check_token_ids(model.config, config.generation, config.data)
    return prepare_model(model, config.generation.precision), tokenizer


def _read_documents(config: Config, tokenizer: PreTrainedTokenizerFast, model_folder: Path | None) -> list[Document]:
    """The documents to evaluate; UserError if they have no summaries or were prepared with another tokenizer."""
    split = config.evaluation.split
    dataset = open_dataset(config.data, config.data.shards, split)
    folder = dataset.folder
    own = load_tokenizer(tokenizer_folder(config.data))
    if fingerprint(tokenizer) != fingerprint(own):
        raise UserError(
            f"{model_folder}: its tokenizer is not the one of {folder}; prepare the documents with it again"
        )
    dataset.check_tokenizer(own, config.data.shards)
    count = min(len(dataset), config.evaluation.max_documents or len(dataset))
    documents = [dataset.read(number) for number in range(count)]
    if not documents or any(document.target is None for document in documents):
        raise UserError(f"{folder}: has documents without summaries; evaluation.split must name a split with summaries")
    return documents


def _mean_kept(
    model: "PoolingModel", tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document], config: Config
) -> float:
    """Mean number of tokens that the last pooling keeps of a document; of those that are read, if nothing is pooled."""
    lengths = [len(source_ids(document, tokenizer, config)) for document in documents]
    for stage in model.stages:
        lengths = [stage.slots(length) for length in lengths]
    return float(np.mean(lengths))


def _mean_reference_words(config: Config, documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast) -> int:
    validation, shards = config.data.validation_split, config.data.shards
    if validation and validation != config.evaluation.split and split_exists(config.data, shards, validation):
        dataset = open_dataset(config.data, shards, validation)
        dataset.check_tokenizer(tokenizer, shards)
        held_out = [dataset.read(number) for number in range(min(len(dataset), LEAD_LENGTH_DOCUMENTS))]
        documents = [document for document in held_out if document.target is not None] or documents
    return max(1, round(np.mean([count_words(reference_text(document, tokenizer)) for document in documents])))


def _highlight_documents(
    model: "PoolingModel",
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    config: Config,
) -> list[dict[str, Any]]:
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


def _row(name: str, results: dict[str, Any], scores: str, text: str) -> dict[str, str]:
    cells = {kind: _cell(results[scores][kind]) for kind in ROUGE_TYPES}
    own = results.get("metrics" if text == "generated" else "lead_metrics", {})
    cells |= {name: f"{value['mean']:.4g} ({value['low']:.4g} to {value['high']:.4g})" for name, value in own.items()}
    return {"": name, **cells, "words": f"{results['mean_words'][text]:.0f}"}


def _cell(interval: dict[str, float]) -> str:
    return f"{percent(interval['mean'])} ({percent(interval['low'])}-{percent(interval['high'])})"


def _evidence_interval(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, float] | None:
    values = [value for row in rows if (value := row.get("evidence_recall")) is not None]
    return dataclasses.asdict(bootstrap(values, seed=seed)) if values else None


def _own_intervals(rows: Sequence[dict[str, Any]], config: Config) -> dict[str, Any]:
    """The user's own metrics, of the summaries and of lead-n; nothing where there are none."""
    names, seed = config.evaluation.metrics, config.seed
    keys = ("metrics", "lead_metrics") if names else ()
    return {
        key: {name: dataclasses.asdict(bootstrap([row[key][name] for row in rows], seed=seed)) for name in names}
        for key in keys
    }


def _intervals(rows: Sequence[dict[str, Any]], key: str, seed: int) -> dict[str, dict[str, float]]:
    return {name: dataclasses.asdict(bootstrap([row[key][name] for row in rows], seed=seed)) for name in ROUGE_TYPES}

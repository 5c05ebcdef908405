"""Evaluation in the loop: held-out loss, ROUGE of generated summaries, which checkpoint is best, when to stop.

Every rank gets the same numbers, so every rank makes the same decision.
"""

from typing import Any

import numpy as np
import torch

from transpooler.common import say
from transpooler.model.layers.streaming import cutting
from transpooler.trainer.engine.ranks import Ranks, run_on_all_ranks
from transpooler.trainer.evaluation.generate import batches, generate, reference_text, source_ids
from transpooler.trainer.evaluation.rouge import ROUGE_TYPES, rouge
from transpooler.trainer.job import Job
from transpooler.trainer.step import held_out_loss


def evaluate_in_loop(job: Job) -> bool:
    """Evaluate, log, remember the best; returns whether a checkpoint of this step must be kept as the best so far."""
    state, settings = job.state, job.config.train
    loss, num_tokens = held_out_loss(job)
    row: dict[str, Any] = {"step": state.step, "split": "validation", "loss": loss, "num_target_tokens": num_tokens}
    if settings.generate_documents:
        row |= score_generated(job) | {"rouge_dialect": job.config.evaluation.rouge}
    state.evaluation_pending = False
    value = -row["loss"] if settings.best_metric == "loss" else row[settings.best_metric]
    better = state.best_value is None or value > state.best_value
    if better:
        state.best_value, state.best_step, state.evaluations_without_gain = value, state.step, 0
    else:
        state.evaluations_without_gain += 1
    row["evaluations_without_gain"] = state.evaluations_without_gain
    scores = "".join(f", {name} {100 * row[name]:.2f}" for name in ROUGE_TYPES if name in row)
    scores += f" ({row['rouge_dialect']})" if scores else ""
    say(f"step {state.step}: held-out loss {loss:.4f}{scores}{', the best so far' if better else ''}")
    if job.metrics is not None:
        job.metrics.write(row)
    return better and settings.keep_best_checkpoint


def is_complete(job: Job) -> bool:
    """Whether all steps are done, or evaluations are good enough or no longer improve, and none is pending."""
    state, settings = job.state, job.config.train
    if state.evaluation_pending:
        return False
    in_last_stage = state.stage == len(job.config.stages) - 1
    if settings.patience and in_last_stage and state.evaluations_without_gain >= settings.patience:
        return True
    if settings.target_loss and state.best_value is not None and -state.best_value <= settings.target_loss:
        return True
    return state.step >= settings.steps


@torch.no_grad()
def score_generated(job: Job) -> dict[str, float]:
    """Mean ROUGE F1, 0..1, of generated summaries of the first validation documents, which the ranks share.

    Under ZeRO 3 every forward pass is a collective: ranks without work generate for a dummy document, and all ranks
    continue until the last has finished (`synced_gpus`).
    """
    assert job.validation is not None
    config, dataset = job.config, job.validation.dataset
    tokenizer = job.validation.tokenizer
    numbers = range(min(config.train.generate_documents, len(dataset)))
    work = list(batches(numbers, config.generation.batch_size))
    ranks = Ranks(job.rank, job.world_size)
    synced = config.engine.gathers_in_forward(job.world_size)
    own: list[tuple[int, list[int]]] = ranks.share(work)
    if len(own) < -(-len(work) // ranks.size):
        own.append((len(work), []))
    read = run_on_all_ranks(lambda: {index: dataset.read(index) for _, chosen in own for index in chosen})
    scores = []
    job.engine.eval()
    for _, chosen in own:
        job.check_stop("generation")
        if not chosen and not synced:
            continue
        documents = [read[index] for index in chosen]
        sources = [source_ids(document, tokenizer, config) for document in documents]
        dummy = [[tokenizer.eos_token_id]]
        cuts = cutting(config.engine.cuts(job.world_size))
        with cuts, torch.compiler.set_stance("force_eager"):  # every new length of a summary would compile again
            texts = generate(job.engine.module, tokenizer, sources or dummy, config.generation, synced=synced)
        for index, document, text in zip(chosen, documents, texts, strict=False):
            assert document.target is not None  # the loader has checked all of them
            scores.append((index, rouge(reference_text(document, tokenizer), text, config.evaluation.rouge)))
    job.engine.train()
    rows = ranks.gather_in_order(scores)
    return {name: float(np.mean([row[name] for row in rows])) for name in ROUGE_TYPES}

"""Summarize text files (one document each) and JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst; one document a line).

A text with form feeds is taken for pdftotext's: words hyphenated at the ends of its lines are joined.
Standard input and pipes are read to their end before the first summary is made, but with --stream.
Started again after an interrupt, the same command goes on where FILE.incomplete of its --output ends.

examples:
  transpooler summarize paper.txt --model runs/finetune/export
  pdftotext paper.pdf - | transpooler summarize - --model runs/finetune/export
  transpooler summarize papers.jsonl.gz --model runs/finetune/export --json --output summaries.jsonl
  transpooler summarize paper.txt --model runs/finetune/export --html paper.html
  producer | transpooler summarize - --json-input --stream --json --model runs/finetune/export | consumer
"""

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transpooler.common import UserError, all_problems, one_line, say, without_collection
from transpooler.launch.arguments import budget, finite, positive, require_targets, whole
from transpooler.launch.input_documents import (
    InputDocument,
    count_documents,
    find_inputs,
    read_documents,
    spool_streams,
)
from transpooler.launch.summary_output import SummaryOutput, describe_run, open_output
from transpooler.model.ops.decoding.precisions import PRECISIONS
from transpooler.trainer.config.root import GenerationConfig
from transpooler.trainer.weights.models import require_model

if TYPE_CHECKING:
    from transpooler.trainer.evaluation.summaries import Summary

    Pair = tuple[InputDocument, Summary]

OWN = "(default: the model's)"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("files", nargs="+", metavar="FILE|-", help="documents; - reads standard input")
    parser.add_argument(
        "--json-input", action="store_true", help="all inputs are JSON Lines, whatever their names: for - and pipes"
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="an exported model")
    _add_generation(parser)
    parser.add_argument(
        "--max-source-tokens",
        type=positive,
        metavar="N",
        help="cut documents to this many tokens (default: the model's)",
    )
    parser.add_argument("--column", metavar="KEY", help="key of the document in JSON lines (default: recognised)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write here; if interrupted, FILE.incomplete keeps what is finished"
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="summarize JSON lines as they arrive, one by one; nothing is looked through first",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write a page: each sentence of a summary shows where it comes from",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object per document, with its name, the row's id, lengths, and the sources of each sentence",
    )
    parser.add_argument(
        "--no-sources",
        action="store_true",
        help="with --json: no sources, which cost a second encoding",
    )


def _add_generation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-beams", type=positive, metavar="N", help=f"width of the beam search {OWN}")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help=f"longest summary {OWN}")
    parser.add_argument("--min-new-tokens", type=whole, metavar="N", help=f"shortest summary {OWN}")
    parser.add_argument(
        "--length-penalty",
        type=finite,
        metavar="X",
        help=f"above 1 favours long ones, with 2 beams or more {OWN}",
    )
    parser.add_argument("--no-repeat-ngram-size", type=whole, metavar="N", help=f"forbid repeated n-grams {OWN}")
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="documents generated together (default 8; 1 with --stream)"
    )
    parser.add_argument(
        "--keep",
        type=budget,
        metavar="K",
        help="tokens that the last pooling keeps of each document, or a share such as 0.125 (default: the largest "
        "budget that the model was trained with)",
    )
    parser.add_argument("--precision", metavar="|".join(PRECISIONS), help="of the weights that write (default fp32)")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler summarize`, some batches at a time, so that any number of documents fits into memory."""
    require_model(parsed.model)
    generation = read_generation(parsed)
    inputs = find_inputs(parsed.files, parsed.json_input)
    require_targets({"--output": parsed.output, "--html": parsed.html}, [entry.path for entry in inputs])
    if parsed.stream and parsed.html is not None:
        raise UserError("--html: the page is made of all documents, whose number --stream does not know; leave one out")
    if parsed.html is not None:
        from transpooler.trainer.report import check_page

        check_page(parsed.html)
    with ExitStack() as stack:
        inputs = stack.enter_context(spool_streams(inputs, live=parsed.stream))
        total = None if parsed.stream else count_documents(inputs, parsed.column)
        output = stack.enter_context(open_output(parsed.output, describe_run(parsed, generation, inputs)))
        with without_collection():
            from transpooler.trainer.evaluation.summarizer import WINDOW_BATCHES, Summarizer, watch
            from transpooler.trainer.weights.models import load_model, prepare_model

        model, tokenizer = load_model(parsed.model, parsed.keep)
        summarizer = Summarizer(
            prepare_model(model, generation.precision),
            tokenizer,
            generation,
            max_source_tokens=parsed.max_source_tokens,
            with_sources=parsed.html is not None or (parsed.json and not parsed.no_sources),
        )
        made = summarizer.stream(
            read_documents(inputs, parsed.column),
            lambda document: document.head,
            num_done=output.num_done,
            window_batches=1 if parsed.stream else WINDOW_BATCHES,
        )
        # Progress would disturb results that are printed on the same terminal.
        watches = parsed.output is not None or not sys.stdout.isatty()
        watched = watch(made, total and total - output.num_done) if watches else made
        shown = partial(_as_json, with_sources=not parsed.no_sources) if parsed.json else partial(_as_text, total=total)
        finished = _count_cut(_write_all(watched, output, shown), summarizer.limit)
        if total is not None and parsed.html is not None:
            from transpooler.trainer.report import write_documents

            write_documents((summary.on_page(document.name) for document, summary in finished), parsed.html, total)
        else:
            deque(finished, maxlen=0)


def _count_cut(found: Iterator["Pair"], limit: int) -> Iterator["Pair"]:
    """Pass on summaries; log at the end how many documents were cut."""
    total = num_cut = 0
    for document, summary in found:
        total, num_cut = total + 1, num_cut + (summary.num_source_tokens is None)
        yield document, summary
    if num_cut:
        say(f"{num_cut:,} of {total:,} documents were cut to {limit:,} tokens")


def _write_all(
    found: Iterator["Pair"], output: SummaryOutput, show: Callable[[int, InputDocument, "Summary"], str]
) -> Iterator["Pair"]:
    """Write each summary and pass it on."""
    for number, (document, summary) in enumerate(found, start=output.num_done):
        output.write(show(number, document, summary))
        yield document, summary


def _as_json(number: int, document: InputDocument, summary: "Summary", *, with_sources: bool) -> str:
    values = {"document": document.name, "id": document.id, **summary.as_dict(with_sources=with_sources)}
    return json.dumps(values, ensure_ascii=False)


def _as_text(number: int, document: InputDocument, summary: "Summary", *, total: int | None) -> str:
    """The summary, under a heading unless it is the only one."""
    heading = f"{chr(10) if number else ''}== {one_line(document.name)} ==\n" if total != 1 else ""
    return f"{heading}{summary.text}"


def read_generation(parsed: argparse.Namespace) -> GenerationConfig:
    """Generation settings from the options given, else the model's own; UserError lists what is wrong with them."""
    names = (
        *("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram_size"),
        *("batch_size", "precision"),
    )
    given = {"batch_size": 1} if parsed.stream else {}  # a document that is there waits for no other
    given |= {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    from transpooler.trainer.weights.generation import stored_generation

    generation = GenerationConfig(**stored_generation(parsed.model) | given)
    if problems := [f"--{key.replace('_', '-')} {message}" for key, message in all_problems(generation)]:
        raise UserError(*problems)
    return generation

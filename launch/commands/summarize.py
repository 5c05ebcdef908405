"""`transpooler summarize`: documents to summaries, with an exported model."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import atomic_write
from common.progress import progress
from launch.arguments import add_command, positive
from launch.checks import require_model
from launch.documents import count_documents, read_documents, spooled
from trainer.config import GenerationConfig


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "summarize",
        "summarize text files (one document each) and JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst; one document a line)",
        "  transpooler summarize paper.txt --model runs/finetune/export\n"
        "  pdftotext paper.pdf - | transpooler summarize - --model runs/finetune/export\n"
        "  transpooler summarize papers.jsonl.gz --model runs/finetune/export --json --output summaries.jsonl\n"
        "  transpooler summarize paper.txt --model runs/finetune/export --html paper.html",
    )
    parser.add_argument("files", nargs="+", metavar="FILE|-", help="documents; - reads standard input")
    parser.add_argument("--json-input", action="store_true", help="standard input holds JSON Lines, not one text")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="an exported model")
    parser.add_argument("--num-beams", type=positive, metavar="N", help="width of the beam search (default 4)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest summary (default 256)")
    parser.add_argument("--min-new-tokens", type=positive, metavar="N", help="shortest summary (default 0)")
    parser.add_argument("--length-penalty", type=float, metavar="X", help="above 1 favours long ones (default 1.0)")
    parser.add_argument("--no-repeat-ngram-size", type=positive, metavar="N", help="forbid repeated n-grams")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="documents generated together (default 8)")
    parser.add_argument(
        "--max-source-tokens",
        type=positive,
        metavar="N",
        help="cut documents to this many tokens (default: the model's)",
    )
    parser.add_argument("--column", metavar="KEY", help="key of the document in .jsonl lines (default: recognised)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write here instead of standard output")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page that shows what the model kept of each document"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per document, with its name and lengths")


def run(parsed: argparse.Namespace) -> None:
    """Do it: a batch at a time, so that any number of documents fits into memory."""
    require_model(parsed.model)
    generation = generation_of(parsed)
    with ExitStack() as stack:
        files = stack.enter_context(spooled(parsed.files, parsed.json_input))
        total = count_documents(files, parsed.column)
        from trainer.models import load_model

        model, tokenizer = load_model(parsed.model)
        write = stack.enter_context(_output(parsed.output))
        # A bar between the lines of results would only be in the way.
        watched = parsed.output is not None or not sys.stdout.isatty()
        bar = stack.enter_context(progress("summarize (documents)", total)) if watched else None
        documents = read_documents(files, parsed.column)
        highlighted = []
        for name, summary in _summaries(model, tokenizer, documents, parsed.max_source_tokens, generation):
            line = {"document": name, **summary.as_dict()}
            write(json.dumps(line, ensure_ascii=False) if parsed.json else summary.text)
            if parsed.html is not None:
                highlighted.append(_highlighted(model, tokenizer, name, summary))
            if bar is not None:
                bar.advance()
        if parsed.html is not None:
            from trainer.report import write_documents

            write_documents(highlighted, parsed.html)


def _summaries(
    model: Any,
    tokenizer: Any,
    documents: Iterator[tuple[str, str]],
    max_source_tokens: int | None,
    generation: GenerationConfig,
) -> Iterator[tuple[str, Any]]:
    """(name, Summary) of every document, in order."""
    from trainer.summarize import batches, summarize

    for batch in batches(documents, generation.batch_size):
        texts = [text for _, text in batch]
        found = summarize(model, tokenizer, texts, generation, max_source_tokens=max_source_tokens)
        yield from zip((name for name, _ in batch), found, strict=True)


def _highlighted(model: Any, tokenizer: Any, name: str, summary: Any) -> dict[str, Any]:
    from trainer.highlights import highlight

    marks = highlight(model, tokenizer, summary.read_ids, summary.num_source_tokens)
    return {"name": name, "generated": summary.text, **marks}


@contextmanager
def _output(path: Path | None) -> Iterator[Callable[[str], object]]:
    """A function that writes one line: to a file that is complete or absent, or at once to standard output."""
    if path is None:
        yield lambda line: print(line, flush=True)
        return
    with atomic_write(path) as file:
        yield lambda line: file.write(f"{line}\n")


def generation_of(parsed: argparse.Namespace) -> GenerationConfig:
    """Generation settings from the options given; UserError lists what is wrong with them."""
    names = ("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram_size", "batch_size")
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    generation = GenerationConfig(**given)
    if problems := [f"--{key.replace('_', '-')} {message}" for key, message in generation.problems()]:
        raise UserError("\n".join(problems))
    return generation

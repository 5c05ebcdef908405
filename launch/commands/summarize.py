"""`transpooler summarize`: documents to summaries, with an exported model."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import UserError
from launch.arguments import add_command, positive
from launch.checks import require_model
from trainer.config import GenerationConfig


def add(commands: argparse._SubParsersAction) -> None:
    """Its arguments."""
    parser = add_command(
        commands,
        "summarize",
        "summarize text files (one document each) and .jsonl or .jsonl.gz files (one document a line)",
        "  transpooler summarize paper.txt --model runs/finetune/export\n"
        "  pdftotext paper.pdf - | transpooler summarize - --model runs/finetune/export\n"
        "  transpooler summarize papers.jsonl.gz --model runs/finetune/export --json --output summaries.jsonl",
    )
    parser.add_argument("files", nargs="+", metavar="FILE|-", help="documents; - reads one text from standard input")
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
    parser.add_argument("--json", action="store_true", help="one JSON object per document, with its name and lengths")


def run(parsed: argparse.Namespace) -> None:
    """`transpooler summarize`."""
    require_model(parsed.model)
    generation = generation_of(parsed)
    documents = list(_documents(parsed.files, parsed.column))
    from trainer.models import load_model
    from trainer.summarize import summarize as summarize_texts

    model, tokenizer = load_model(parsed.model)
    summaries = summarize_texts(
        model, tokenizer, (text for _, text in documents), generation, max_source_tokens=parsed.max_source_tokens
    )
    lines = (
        json.dumps({"document": name, **summary.as_dict()}, ensure_ascii=False) if parsed.json else summary.text
        for (name, _), summary in zip(documents, summaries, strict=True)
    )
    if parsed.output is None:
        for line in lines:
            print(line, flush=True)
        return
    from common.files import atomic_write

    with atomic_write(parsed.output) as file:
        file.writelines(f"{line}\n" for line in lines)


def generation_of(parsed: argparse.Namespace) -> GenerationConfig:
    """Generation settings from the options given; UserError lists what is wrong with them."""
    names = ("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram_size", "batch_size")
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    generation = GenerationConfig(**given)
    if problems := [f"--{key.replace('_', '-')} {message}" for key, message in generation.problems()]:
        raise UserError("\n".join(problems))
    return generation


def _documents(files: Sequence[str], column: str | None) -> Iterator[tuple[str, str]]:
    """(name, text) of every document; a bad line of a .jsonl file is a UserError, since it was asked for by name."""
    for file in files:
        if file == "-":
            yield "-", _checked("standard input", _read(sys.stdin.buffer.read(), "standard input"))
        elif file.endswith((".jsonl", ".jsonl.gz")):
            yield from _json_documents(file, column)
        else:
            try:
                yield file, _checked(file, _read(Path(file).read_bytes(), file))
            except OSError as error:
                raise UserError(f"{file}: cannot read: {error.strerror}") from None


def _json_documents(file: str, column: str | None) -> Iterator[tuple[str, str]]:
    from data_pipeline.readers import Dropped, read_documents, resolve_paths

    paths = resolve_paths([file], "FILE")
    for item in read_documents(paths, source_column=column, target_column=None, require_target=False):
        where = f"{file}:{item.line}"
        if isinstance(item, Dropped):
            remedy = "; name the document's key with --column" if item.reason == "missing_source" else ""
            raise UserError(f"{where}: cannot be summarized ({item.reason}){remedy}")
        yield where, _checked(where, item.source)


def _read(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}; convert it first (iconv -t UTF-8)") from None


def _checked(name: str, text: str) -> str:
    if not text.strip():
        raise UserError(f"{name}: empty document; nothing to summarize")
    return text

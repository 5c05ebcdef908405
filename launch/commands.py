"""What each command does, one function per command. Heavy packages are imported inside, when the command runs."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import UserError
from launch.cli import split_settings
from trainer.config import Config, GenerationConfig

UNTRAINED = "untrained"


def prepare(parsed: argparse.Namespace) -> None:
    """`transpooler prepare`."""
    config = _config(parsed)
    if config is None:
        return
    from data_pipeline.prepare import prepare as prepare_shards

    prepare_shards(config.prepare)


def train(parsed: argparse.Namespace) -> int | None:
    """`transpooler train`: in this process, or in several ranks."""
    config = _config(parsed)  # checked here, before any rank starts
    if config is None:
        return None
    if parsed.processes > 1:
        from launch.ranks import run_ranks

        quiet = ["--quiet"] if parsed.quiet else []
        return run_ranks(parsed.processes, [*config_settings(parsed.settings), *quiet])
    from trainer.train import train as train_here

    train_here(config)
    return None


def evaluate(parsed: argparse.Namespace) -> None:
    """`transpooler evaluate`."""
    config = _config(parsed)
    if config is None:
        return
    untrained = parsed.model == UNTRAINED
    model = None if untrained else Path(parsed.model or Path(config.run) / "export")
    if model is not None:
        require_model(model)
    name = f"{config.evaluation.split}-{UNTRAINED}" if untrained else config.evaluation.split
    from trainer.evaluate import evaluate as evaluate_model
    from trainer.evaluate import print_table

    print_table(
        evaluate_model(config, model_folder=model, output=parsed.output or Path(config.run) / "evaluation" / name)
    )


def summarize(parsed: argparse.Namespace) -> None:
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


def report(parsed: argparse.Namespace) -> None:
    """`transpooler report`."""
    for run in parsed.runs:
        require_run(run)
    from trainer.report import write_report

    output = parsed.output or parsed.runs[-1] / "report.html"
    write_report(parsed.runs, output)
    print(output)


def export(parsed: argparse.Namespace) -> None:
    """`transpooler export`."""
    require_run(parsed.run)
    from trainer.export import export_run

    export_run(parsed.run, parsed.output, parsed.step)
    print(parsed.output)


def demo(parsed: argparse.Namespace) -> int | None:
    """`transpooler demo`."""
    from launch.demo import run_demo

    return run_demo(parsed.data, parsed.output, processes=parsed.processes, quiet=parsed.quiet)


def require_run(folder: Path) -> None:
    """UserError unless `folder` is a run folder."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml); give the folder that `transpooler train` wrote")


def require_model(folder: Path) -> None:
    """UserError unless `folder` holds an exported model."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported model there (no config.json); train one or run `transpooler export`")


def config_settings(settings: Sequence[str]) -> list[str]:
    """Settings with each run folder replaced by its config.yaml."""
    paths, overrides = split_settings(settings)
    return [str(Path(path) / "config.yaml") if Path(path).is_dir() else path for path in paths] + overrides


def generation_of(parsed: argparse.Namespace) -> GenerationConfig:
    """Generation settings from the options given; UserError lists what is wrong with them."""
    names = ("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram_size", "batch_size")
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    generation = GenerationConfig(**given)
    if problems := [f"--{key.replace('_', '-')} {message}" for key, message in generation.problems()]:
        raise UserError("\n".join(problems))
    return generation


def _config(parsed: argparse.Namespace) -> Config | None:
    """The checked configuration, or None when it was only to be printed."""
    from trainer.config_loader import config_to_yaml, load_config

    config = load_config(*split_settings(config_settings(parsed.settings)))
    if not parsed.print_config:
        return config
    sys.stdout.write(config_to_yaml(config))
    return None


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

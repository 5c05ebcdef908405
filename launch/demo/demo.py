"""The main job, from documents to a report: what `make demo` runs. Reads like the commands a user would give."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from transpooler.common import atomic_write, read_json, say
from transpooler.launch.demo.corpus import demo_sources
from transpooler.trainer.config import Config
from transpooler.trainer.run_folder import RunFolder

PRESETS = ("demo", "demo_pretrain", "demo_finetune")


def run_demo(
    data: Path | None, output: Path, *, processes: int = 2, overrides: Sequence[str] = (), quiet: bool = False
) -> int | None:
    """Prepare, pretrain, fine-tune, evaluate, summarize, report; what is done already is skipped.

    `overrides`: key=value settings for both trainings, over the presets.
    Returns the exit code of a training run that did not finish (75: preempted, run me again), else None.
    """
    shared, pretrain, finetune = PRESETS
    shards, runs = output / "shards", {name: output / name for name in ("pretrain", "finetune")}
    paths = [f"prepare.output={shards}", f"data.shards={shards}"]
    pretraining = [shared, pretrain, *overrides, *paths, f"run={runs['pretrain']}"]
    weights = f"train.init_from={RunFolder(runs['pretrain']).export}"
    finetuning = [shared, finetune, *overrides, *paths, f"run={runs['finetune']}", weights]

    say("== documents to shards")
    sources = demo_sources(data, output / "corpus")
    prepare(finetuning, sources)
    for name, settings in (("pretraining", pretraining), ("fine-tuning", finetuning)):
        say(f"== {name} in {processes} DeepSpeed processes")
        if code := train(settings, processes, quiet):
            return code
    say("== evaluation: untrained model, then the fine-tuned one")
    untrained = evaluate(finetuning, None)
    trained = evaluate(finetuning, RunFolder(runs["finetune"]).export)
    say("== summary of one held-out document")
    name, summary, reference = summarize(finetuning)
    with atomic_write(output / "summary.txt") as file:
        file.write(f"{summary}\n")
    from transpooler.trainer.report import write_report

    write_report([runs["pretrain"], runs["finetune"]], output / "report.html")
    print_outcome(list(runs.values()), untrained, trained)
    print(f"\nheld-out document: {name}")
    print(f"  generated: {' '.join(summary.split())}")
    print(f"  reference: {' '.join(reference.split())}")
    print(f"\nreport: {output / 'report.html'}")
    return None


def prepare(settings: Sequence[str], sources: dict[str, Path]) -> None:
    """`transpooler prepare`, with each split's file."""
    from transpooler.data_pipeline.config import SourcesConfig
    from transpooler.data_pipeline.prepare.prepare import prepare as prepare_shards

    # The sources are set here, not as key=value, so that any character may stand in a path.
    files = SourcesConfig(**{split: (str(path),) for split, path in sources.items()})
    prepare_shards(replace(_load(settings).prepare, sources=files))


def train(settings: Sequence[str], processes: int, quiet: bool) -> int:
    """`transpooler train --processes N`, unless this very run has ended; returns the exit code."""
    from transpooler.launch.ranks.local import run_ranks

    config = _load(settings)
    run = RunFolder(config.run)
    if run.export_config.is_file() and _load([str(run.config)]) == config:
        say(f"{run.root}: trained already")
        return 0
    return run_ranks(processes, [*settings, *(["--quiet"] if quiet else [])])


def evaluate(settings: Sequence[str], model_folder: Path | None) -> dict[str, Any]:
    """`transpooler evaluate`, unless its results are newer than the model."""
    config = _load(settings)
    name = config.evaluation.split if model_folder else f"{config.evaluation.split}-untrained"
    output = RunFolder(config.run).evaluation(name)
    model = RunFolder(config.run).export_config
    if output.metrics.is_file() and output.metrics.stat().st_mtime_ns > model.stat().st_mtime_ns:
        say(f"{output.root}: evaluated already")
        return read_json(output.metrics)
    from transpooler.trainer.evaluation.evaluate import evaluate as evaluate_model

    return evaluate_model(config, model_folder=model_folder, output=output.root)


def summarize(settings: Sequence[str]) -> tuple[str, str, str]:
    """Name, generated summary and reference of the first held-out document."""
    from transpooler.data_pipeline.shards.dataset import ShardDataset
    from transpooler.trainer.evaluation.summarizer import Summarizer
    from transpooler.trainer.weights.models import load_model

    config = _load(settings)
    model, tokenizer = load_model(RunFolder(config.run).export)
    document = ShardDataset(Path(config.data.shards) / config.evaluation.split).read(0)
    text = str(tokenizer.decode(document.source, clean_up_tokenization_spaces=False))
    limit = config.data.max_source_tokens
    summarizer = Summarizer(model, tokenizer, config.generation, max_source_tokens=limit)
    (summary,) = summarizer.summarize(text, sources=False, progress=False)
    return document.meta["id"], summary.text, document.meta["target_text"]


def print_outcome(runs: Sequence[Path], untrained: dict[str, Any], trained: dict[str, Any]) -> None:
    """Print losses, scores against the baselines and throughput."""
    from transpooler.trainer.evaluation.evaluate import print_evaluations
    from transpooler.trainer.metrics import read_metrics

    print()
    for run in runs:
        lines = [line for line in read_metrics(run) if line["split"] == "train"]
        speed = median(line["source_tokens_per_s"] for line in lines)
        first, last = lines[0], lines[-1]
        print(
            f"{run.name}: training loss {first['loss']:.3f} (step {first['step']}) -> {last['loss']:.3f} "
            f"(step {last['step']}), {speed:,.0f} source tokens/s"
        )
    print(f"held-out loss: untrained {untrained['loss']:.3f}, fine-tuned {trained['loss']:.3f}", end="")
    shuffled = trained["shuffled_loss"]  # None for a single document
    print("" if shuffled is None else f", with the summaries shuffled among the documents {shuffled:.3f}")
    print_evaluations(trained, untrained)


def _load(settings: Sequence[str]) -> Config:
    from transpooler.launch.arguments import split_settings
    from transpooler.trainer.config import load_config

    return load_config(*split_settings(settings))

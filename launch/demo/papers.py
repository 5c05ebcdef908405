"""The demo on one's own documents, from files to a report. Reads like the commands a user would give."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from transpooler.common import atomic_write, read_json, say
from transpooler.launch.demo.corpus import own_sources
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.trainer.config import Config
from transpooler.trainer.run_folder import EvaluationFolder, RunFolder

PRESETS = ("demo", "demo_pretrain", "demo_finetune")
WITH_WEIGHTS = "demo_weights"
KEPT_SHARE = 0.25
ENCODER_SHARE = 0.25
"""Of a causal language model's layers, those that encode."""


def run_papers(
    data: Path,
    output: Path,
    *,
    weights: str | None = None,
    processes: int = 2,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> int | None:
    """Prepare, pretrain, fine-tune, evaluate, summarize, report; what is done already is skipped.

    weights: start from these pretrained ones (a folder, or a repository of the hub) in place of pretraining;
    overrides: key=value settings for all trainings, over the presets.
    Returns the exit code of a training run that did not finish (75: preempted, run me again), else None.
    """
    trainings = plan_trainings(output, weights, overrides)
    *_, finetuning = trainings.values()
    runs = [output / name for name in trainings]
    say("== documents to shards")
    prepare(finetuning, own_sources(data, output / "corpus"))
    for name, settings in trainings.items():
        say(f"== {name} in {processes} DeepSpeed processes")
        if code := train(settings, processes, quiet):
            return code
    say(f"== evaluation: {'untrained model' if weights is None else 'the weights as they come'}, then the trained one")
    before = evaluate(finetuning, None if weights is None else write_start(finetuning, output / "start"))
    trained = evaluate(finetuning, RunFolder(runs[-1]).export)
    say("== summary of one held-out document")
    name, summary, reference = summarize(finetuning)
    with atomic_write(output / "summary.txt") as file:
        file.write(f"{summary}\n")
    from transpooler.trainer.report import write_report

    write_report(runs, output / "report.html")
    print_outcome(runs, before, trained)
    print(f"\nheld-out document: {name}")
    print(f"  generated: {' '.join(summary.split())}")
    print(f"  reference: {' '.join(reference.split())}")
    print(f"\nreport: {output / 'report.html'}")
    return None


def plan_trainings(output: Path, weights: str | None, overrides: Sequence[str]) -> dict[str, list[str]]:
    """Name of each training's folder -> its settings, in order; the last is that of the model."""
    paths = [f"prepare.output={output / 'shards'}", f"data.shards={output / 'shards'}"]
    if weights is not None:
        settings = [WITH_WEIGHTS, *overrides, *paths, f"run={output / 'finetune'}", f"train.init_from={weights}"]
        return {"finetune": [*settings, *_default_pooling(_load(settings))]}
    shared, pretrain, finetune = PRESETS
    start = f"train.init_from={RunFolder(output / 'pretrain').export}"
    return {
        "pretrain": [shared, pretrain, *overrides, *paths, f"run={output / 'pretrain'}"],
        "finetune": [shared, finetune, *overrides, *paths, f"run={output / 'finetune'}", start],
    }


def _default_pooling(config: Config) -> list[str]:
    """Settings of a pooler behind the encoder, unless the user has given one."""
    model = config.model
    settings: list[str] = []
    if model.pooling:
        return settings
    layers = model.encoder_layers
    if isinstance(model, CompressorArchitecture) and layers is None:
        layers = max(1, round(ENCODER_SHARE * model.num_layers))
        settings.append(f"model.encoder_layers={layers}")
    return [*settings, f"model.pooling=[{{after_layer: {layers}, ratio: {KEPT_SHARE}}}]"]


def write_start(settings: Sequence[str], folder: Path) -> Path:
    """`transpooler adopt`: the model before its first step, unless it is there; returns its folder."""
    from transpooler.trainer.weights.export import export_start

    if not (folder / "config.json").is_file():
        export_start(_load(settings), folder)
    return folder


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
    """`transpooler evaluate` of the run's model, another or the untrained one (None), unless that is done."""
    config = _load(settings)
    model = RunFolder(config.run).export_config
    if model_folder in (None, model.parent):
        output = RunFolder(config.run).evaluation(config.evaluation.split + ("" if model_folder else "-untrained"))
    else:
        output = EvaluationFolder(model_folder.parent / f"{model_folder.name}-evaluation")
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
    print(f"held-out loss: before {untrained['loss']:.3f}, fine-tuned {trained['loss']:.3f}", end="")
    shuffled = trained["shuffled_loss"]  # None for a single document
    print("" if shuffled is None else f", with the summaries shuffled among the documents {shuffled:.3f}")
    print_evaluations(trained, untrained | {"trained": False})


def _load(settings: Sequence[str]) -> Config:
    from transpooler.launch.arguments import split_settings
    from transpooler.trainer.config import load_config

    return load_config(*split_settings(settings))

"""The README.md of an export: what the model is, what it was trained on, how well it does."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpooler.common import TESTED, percent
from transpooler.trainer.config import Config
from transpooler.trainer.evaluation.rouge import ROUGE_TYPES, dialect_of
from transpooler.trainer.metrics import read_metrics
from transpooler.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from transpooler.model import PoolingModel

CARD = """---
library_name: transformers
pipeline_tag: summarization
tags: [summarization, long-documents, transpooler]
---
# {name}

A pooling encoder-decoder made with transpooler: it encodes a document in blocks of {block} tokens, keeps the tokens
that matter ({schedule}), and writes from those alone. {parameters:,} parameters, {trained}.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model = AutoModelForSeq2SeqLM.from_pretrained(".", trust_remote_code=True)  # the code is in this folder
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
print(model.summarize([document]))  # each sentence with the passages of the document that it was written from

ids = tokenizer(document, return_tensors="pt", truncation=True, max_length={max_source}).input_ids
print(tokenizer.decode(model.generate(ids, num_beams=4, max_new_tokens={max_target})[0], skip_special_tokens=True))
```

The code was tested with transformers {oldest} to {newest}, and refuses others. The tokenizer ends every text by
`{eos}`, as in training.

With the transpooler package, `import transpooler.model.modeling` instead of `trust_remote_code` brings its compiled
kernels.

## Data
{data}

## Training
{training}

## Results
{results}
"""


def model_card(model: "PoolingModel", config: Config, step: int, eos_token: str) -> str:
    """The card; numbers come from the run's metrics and evaluations, as far as there are any."""
    stages = [
        f"{' or '.join(map(str, stage.budgets))} after layer {stage.after_layer}" for stage in config.model.pooling
    ]
    rows = [row for row in read_metrics(RunFolder(config.run).root) if row["step"] <= step]
    return CARD.format(
        name=RunFolder(config.run).root.resolve().name,
        block=config.model.block_size or "any number of",
        oldest=TESTED["transformers"].oldest,
        newest=TESTED["transformers"].newest,
        eos=eos_token,
        schedule=", ".join(stages) or "no pooling: it keeps all of them",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=f"trained for {step:,} steps ({config.data.objective})" if step else "not trained yet",
        max_source=config.data.max_source_tokens,
        max_target=config.data.max_target_tokens,
        data=_data(config, rows) if step else "None but that of the weights.",
        training=_training(config, rows) if step else _start(config),
        results=_results(config, rows),
    )


def _data(config: Config, rows: list[dict[str, Any]]) -> str:
    data = config.data
    lines = [
        f"Split `{data.train_split}` of the corpus `{Path(data.shards).resolve().name}`, objective `{data.objective}`; "
        f"sources cut to {data.max_source_tokens:,} tokens, targets to {data.max_target_tokens:,}."
    ]
    if seen := [row for row in rows if row["split"] == "train"]:
        last = seen[-1]
        tokens = f"{last['source_tokens']:,} source and {last['target_tokens']:,} target tokens"
        lines.append(f"{tokens}; epoch {last['epoch']}.")
    return "\n".join(lines)


def _training(config: Config, rows: list[dict[str, Any]]) -> str:
    optimizer, engine = config.optimizer, config.engine
    lines = [
        f"{optimizer.name}, peak learning rate {optimizer.learning_rate:g}, {optimizer.schedule} schedule, "
        f"{optimizer.warmup_steps:,} warm-up steps, {config.data.batch_size} documents a step, seed {config.seed}.",
        f"{engine.precision}, ZeRO {engine.zero_stage}.",
    ]
    if len(config.stages) > 1:
        lines += [
            f"Stage {stage.number + 1}, to step {stage.last:,}: peak learning rate {stage.optimizer.learning_rate:g}, "
            f"{stage.optimizer.warmup_steps:,} warm-up steps; frozen: {', '.join(stage.freeze) or 'nothing'}."
            for stage in config.stages
        ]
    elif config.train.freeze:
        lines.append(f"Frozen: {', '.join(config.train.freeze)}.")
    if (lora := config.train.lora) is not None:
        lines.append(f"LoRA of rank {lora.rank} beside {', '.join(lora.targets)}, merged.")
    if config.train.init_from:
        lines.append(_start(config))
    if losses := [row for row in rows if row["split"] == "train"]:
        lines.append(f"Training loss {losses[0]['loss']:.3f} (step {losses[0]['step']:,}) to {losses[-1]['loss']:.3f}.")
    return "\n".join(lines)


def _start(config: Config) -> str:
    source = str(config.train.init_from)
    return f"Started from the weights of `{Path(source).resolve().name if Path(source).exists() else source}`."


def _results(config: Config, rows: list[dict[str, Any]]) -> str:
    row = next((row for row in reversed(rows) if row["split"] == "validation"), None)
    if row is None:
        return "None yet; `transpooler evaluate` measures ROUGE on a held-out split."
    scores = "".join(f", {name} {percent(row[name])}" for name in ROUGE_TYPES if name in row)
    scores += f" ({dialect_of(row)})" if scores else ""
    return f"Split `{config.data.validation_split}` at step {row['step']:,}: loss {row['loss']:.3f}{scores}."

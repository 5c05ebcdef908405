"""What several tests share: a small corpus in shards, and a configuration to train on it."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.tiny import MODEL, write_corpus
from transpooler.common import set_quiet

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: its kernels then run on the CPU

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the commands that tests start would not hear it

DOCUMENTS = {"train": 24, "validation": 5, "test": 5}


@pytest.fixture(autouse=True)
def not_quiet() -> None:
    """A test that ran a command with -q must not silence the next one."""
    set_quiet(False)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Shards of 24 + 5 + 5 documents of 30 to 120 words, whose summaries repeat their first words."""
    from transpooler.data_pipeline.config import PrepareConfig, SourcesConfig, TokenizerConfig
    from transpooler.data_pipeline.prepare.prepare import prepare

    folder = tmp_path_factory.mktemp("corpus")
    sources = {split: (path,) for split, path in write_corpus(folder, DOCUMENTS).items()}
    prepare(
        PrepareConfig(
            output=str(folder / "shards"),
            sources=SourcesConfig(**sources),
            tokenizer=TokenizerConfig(vocab_size=300),
        )
    )
    return folder / "shards"


@pytest.fixture
def tiny_settings(shards: Path) -> list[str]:
    """key=value settings of a run that takes milliseconds a step."""
    values = {
        "data": f"{{shards: {shards}, max_source_tokens: 96, max_target_tokens: 24, batch_size: 5}}",
        "model": json.dumps(MODEL),
        "model.pooling": "[{after_layer: 1, length: 32}, {after_layer: 2, length: 8}]",
        "engine.micro_batch_size": 2,
        "optimizer": "{warmup_steps: 2, learning_rate: 0.003}",
        "train": "{steps: 40, checkpoint_every_steps: 8, evaluate_every_steps: 10, log_every_steps: 1}",
        "train.tensorboard": "false",
    }
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture
def exported_run(tiny_settings: list[str], tmp_path: Path) -> Path:
    """RUN with a configuration and an export, of an untrained model: two documents are evaluated in a second."""
    from transpooler.data_pipeline.tokenizer import load_tokenizer
    from transpooler.trainer.config import load_config
    from transpooler.trainer.config.load import save_config
    from transpooler.trainer.weights.export import export_model
    from transpooler.trainer.weights.models import build_model

    run = tmp_path / "run"
    config = load_config(
        [], [*tiny_settings, f"run={run}", "evaluation.max_documents=2", "generation.max_new_tokens=2"]
    )
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    export_model(build_model(config, tokenizer), tokenizer, run / "export", config, step=0)
    save_config(config, run / "config.yaml")
    return run


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests run side by side and start ranks of their own; more threads than cores only cost time."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")

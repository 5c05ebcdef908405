"""Every number of the schema with values that are none or extreme: refused by name, or good for a reason."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from transpooler.common import UserError, all_problems
from transpooler.launch.commands.prepare import array_task
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.config.wrong_types import dataclass_of

NEVER = (".nan", "-.inf", "-1", "1e300", "5000000000")
SMALL = ("0", "1e-300")
OFF = "0 turns it off, or means none, automatic or at once"
SHARE = "a share or a factor, for which nothing is the limit"
TINY = "as small as one likes"
ID = "the first token of a vocabulary"
GOOD: dict[str, tuple[tuple[str, ...], str]] = {
    "seed": (("0", "5000000000"), "any whole number: it is mixed into 64 bits"),
    "prepare.clean.min_source_characters": (("0",), OFF),
    "prepare.clean.min_target_characters": (("0",), OFF),
    "prepare.clean.max_target_source_ratio": (("1e-300",), TINY),
    "prepare.clean.min_letter_share": (SMALL, SHARE),
    "prepare.clean.max_mean_word_characters": (("1e-300",), TINY),
    "prepare.clean.max_repeated_line_share": (SMALL, SHARE),
    "prepare.clean.max_repeated_words_share": (SMALL, SHARE),
    "prepare.clean.held_out_overlap": (("1e-300",), TINY),
    "prepare.workers": (("0",), OFF),
    "data.mixture[0].weight": (("1e-300",), TINY),
    "data.length_bucket_width": (SMALL, SHARE),
    "data.short_first_epochs": (("0",), OFF),
    "data.mask_fraction": (("1e-300",), TINY),
    "data.gap_fraction": (("1e-300",), TINY),
    "data.gap_noise": (SMALL, SHARE),
    "data.gap_kept_fraction": (SMALL, SHARE),
    "data.workers": (("0",), OFF),
    "data.cache_gib": (("1e-300",), "the cache then says that it is too small for a shard"),
    "data.fetch_ahead_steps": (("0",), OFF),
    "data.fetch_retries": (("0",), OFF),
    "data.max_damaged_documents": (("0",), OFF),
    "model.attention_scale": (("1e-300",), TINY),
    "model.norm_eps": (("1e-300",), TINY),
    "model.position_offset": (("0",), OFF),
    "model.embedding_scale": (("1e-300",), TINY),
    "model.logits_scale": (("1e-300",), TINY),
    "model.decoder_start_token_id": (("0",), ID),
    "model.scorer_init_std": (SMALL, SHARE),
    "model.init_std": (SMALL, SHARE),
    "model.exploration_noise": (SMALL, SHARE),
    "model.dropout": (SMALL, SHARE),
    "optimizer.learning_rate": (("1e-300",), TINY),
    "optimizer.muon_learning_rate": (("1e-300",), TINY),
    "optimizer.betas": (SMALL, SHARE),
    "optimizer.eps": (SMALL, SHARE),
    "optimizer.weight_decay": (SMALL, SHARE),
    "optimizer.scorer_learning_rate_scale": (SMALL, SHARE),
    "optimizer.muon_momentum": (SMALL, SHARE),
    "optimizer.warmup_steps": (("0",), OFF),
    "optimizer.polynomial_power": (SMALL, SHARE),
    "optimizer.final_learning_rate_ratio": (SMALL, SHARE),
    "optimizer.max_grad_norm": (SMALL, OFF),
    "optimizer.groups[0].learning_rate": (SMALL, SHARE),
    "optimizer.groups[0].weight_decay": (SMALL, SHARE),
    "train.stages[0].learning_rate": (("1e-300",), TINY),
    "train.stages[0].warmup_steps": (("0",), OFF),
    "train.stages[0].groups[0].learning_rate": (SMALL, SHARE),
    "train.stages[0].groups[0].weight_decay": (SMALL, SHARE),
    "train.lora.dropout": (SMALL, SHARE),
    "engine.zero_stage": (("0",), OFF),
    "engine.peak_tflops": (("1e-300",), TINY),
    "train.max_time": (("1e-300",), "saves and ends at once"),
    "train.keep_checkpoint_every_steps": (("0",), OFF),
    "train.evaluate_every_steps": (("0",), OFF),
    "train.max_validation_documents": (("0",), OFF),
    "train.generate_documents": (("0",), OFF),
    "train.patience": (("0",), OFF),
    "train.target_loss": (SMALL, OFF),
    "train.profile_start_step": (("0",), OFF),
    "train.profile_steps": (("0",), OFF),
    "generation.min_new_tokens": (("0",), OFF),
    "generation.forced_bos_token_id": (("0",), ID),
    "generation.forced_eos_token_id": (("0",), ID),
    "generation.length_penalty": (("-1", *SMALL), "below 0 favours short summaries"),
    "generation.no_repeat_ngram_size": (("0",), OFF),
    "guards.watchdog_timeout_s": (SMALL, OFF),
    "guards.spike_threshold": (SMALL, OFF),
    "cluster.max_restarts": (("0",), OFF),
    "cluster.restart_delay_s": (SMALL, OFF),
    "cluster.max_restart_delay_s": (SMALL, OFF),
    "cluster.hang_timeout_s": (("0",), OFF),
    "cluster.stop_grace_s": (SMALL, OFF),
    "cluster.slurm.time": (("1e-300",), "sbatch takes whole minutes, rounded up"),
    "cluster.slurm.gpus_per_node": (("0",), OFF),
    "cluster.kubernetes.gpus_per_node": (("0",), OFF),
}
"""Values that are accepted, and why."""
CONTEXT = {
    "data.micro_batch_tokens": ["data.batch_tokens=100000"],
    "data.mixture[0].": ["data.mixture=[{name: a, shards: b}]"],
    "optimizer.groups[0].": ["optimizer.groups=[{match: '*', learning_rate: 1, weight_decay: 1}]"],
    "train.stages[0].groups[0].": ["train.stages=[{groups: [{match: '*', learning_rate: 1, weight_decay: 1}]}]"],
    "train.lora.": ["train.lora={targets: ['*']}"],
    "train.stages[0].": ["train.stages=[{steps: 300000}]"],
    "model.pooling[0].length": ["model.pooling=[{after_layer: 1, length: 8}]"],
    "model.pooling[0].": ["model.pooling=[{after_layer: 1, ratio: 0.5}]"],
}
"""Settings that a key needs beside it."""
VALUES_OF_PAIRS = {"optimizer.betas": "[0.5, {}]"}


def numbers(schema: Any, prefix: str = "") -> Iterator[str]:
    """Keys of the schema that take numbers."""
    hints = typing.get_type_hints(schema)
    for entry in dataclasses.fields(schema):
        inner, hint = dataclass_of(hints[entry.name]), str(hints[entry.name])
        if inner is not None:
            index = "[0]" if hint.startswith("tuple") else ""
            yield from numbers(inner, f"{prefix}{entry.name}{index}.")
        elif "int" in hint or "float" in hint:
            yield f"{prefix}{entry.name}"


@pytest.mark.parametrize("key", numbers(Config))
def test_numbers_that_are_none_or_extreme_are_refused_by_name_or_good_for_a_reason(key: str) -> None:
    context = next((values for name, values in CONTEXT.items() if key.startswith(name)), [])
    accepted, messages = list[str](), list[str]()
    for value in (*NEVER, *SMALL):
        text = VALUES_OF_PAIRS.get(key, "{}").format(value)
        try:
            load_config([], [*context, f"{key}={text}"])
            accepted.append(value)
        except UserError as error:
            messages.append(str(error).replace("[0]", "").replace(".0.", "."))
    assert all(key.replace("[0]", "") in message for message in messages), messages
    assert sorted(accepted) == sorted(GOOD.get(key, ((), ""))[0])


def test_the_reasons_are_of_keys_that_exist_and_the_defaults_are_good():
    assert set(numbers(Config)) >= GOOD.keys()
    assert list(all_problems(Config())) == []


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run=2024", "run", "2024"),
        ("run=007", "run", "007"),
        ("run=1e3", "run", "1e3"),
        ("run=on", "run", "on"),
        ("run=[a] b", "run", "[a] b"),
        ("run={a}", "run", "{a}"),
        ("run=a: b # c", "run", "a: b # c"),
        ("run=*a", "run", "*a"),
        ("run=@a%b!c", "run", "@a%b!c"),
        ("run=ü ß", "run", "ü ß"),
        ("run='[a]: \"b\"'", "run", '[a]: "b"'),
        ('prepare.license="a: b"', "prepare.license", "a: b"),
        ("prepare.license=a: b", "prepare.license", "a: b"),
        ("prepare.license=null", "prepare.license", None),
        ("data.mixture[1].shards=[x]", "data.mixture[1].shards", "[x]"),
        ("train.max_time=90m", "train.max_time", "90m"),
        ("cluster.environment.A=[b", "", "cluster.environment.A=[b: not valid YAML"),
        ("prepare.sources.train=[*.jsonl]", "", "prepare.sources.train=.*not valid YAML: .*; put texts into quotes"),
        ("run=", "", "run is null"),
    ],
)
def test_a_text_on_the_command_line_is_itself(override: str, key: str, value: str | None) -> None:
    corpora = "data.mixture=[{name: a, shards: b}, {name: c, shards: d}]"
    if not key:
        with pytest.raises(UserError, match=str(value).replace("[b", r"\[b")):
            load_config([], [corpora, override])
        return
    found: Any = load_config([], [corpora, override])
    for part in key.replace("[1]", "").split("."):
        found = found[1] if isinstance(found, tuple) else found
        found = getattr(found, part)
    assert found == value


def test_a_step_of_more_micro_batches_than_any_machine_makes_is_refused():
    with pytest.raises(UserError, match=r"data.batch_tokens is 2000000000, above 1,048,576 micro batches of 90"):
        load_config([], ["data.batch_tokens=2000000000", "data.max_source_tokens=90"])


def test_denoising_into_a_mask_alone_is_refused():
    with pytest.raises(UserError, match=r"data.max_target_tokens is 2; denoise needs 3"):
        load_config([], ["data.objective=denoise", "data.max_target_tokens=2"])


@pytest.mark.parametrize(("names", "missing"), [(("ID",), "MIN, .*COUNT"), (("ID", "MIN"), "COUNT")])
def test_an_array_that_is_told_by_half_is_refused(monkeypatch, names, missing):
    for name in ("ID", "MIN", "COUNT"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    for name in names:
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", "3")
    with pytest.raises(UserError, match=f"SLURM_ARRAY_TASK_ID is set without .*{missing}; give --task"):
        array_task(None)

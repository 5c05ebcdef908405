"""Ranks that share documents: the same selection to the bit, bytes as counted, and runs that any of them resumes."""

import os
import shutil
from pathlib import Path
from typing import Any

import forked
import pytest
import torch

from tests.integration.test_data_training import copied, damage_document
from tests.unit.model.compressor.test_compressor import compressor
from tests.unit.model.test_layout import encoder, ragged
from transpooler.model.layers.context_parallel import ContextGroup, Part, sharing
from transpooler.model.ops.schedule import OPERATOR_NAMES, SPAN_OPERATORS, WHOLE_OPERATORS
from transpooler.trainer.metrics import TIMED, read_metrics

LENGTHS = (61, 8, 1, 40, 33)
BLOCK = 8


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_rank_selects_what_one_alone_selects(size, tmp_path):
    job = forked.Job(size, encode_shared, (), tmp_path / "log.txt")
    assert set(job.codes()) == {0}, job.output()[-3000:]


def encode_shared() -> None:
    """In a rank: all operators, one and two stages, seq2seq and compressor, against the whole document on this rank."""
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    group = ContextGroup(rank, size, torch.distributed.group.WORLD)
    part = Part(rank, size, BLOCK)
    batch = ragged(LENGTHS, width=64)
    batch["input_ids"] %= 70
    own = _cut(batch, part)
    for operator in OPERATOR_NAMES:
        if operator in WHOLE_OPERATORS:
            continue
        stages = [
            {"after_layer": 1, "ratio": 0.5, "operator": operator},
            {"after_layer": 2, "length": 4, "operator": operator},
        ]
        # Spans across the borders of blocks, and so of ranks.
        spans = [[{"after_layer": 2, "length": 6, "span": 3, "operator": operator}]] * (operator in SPAN_OPERATORS)
        for pooling in (stages, stages[1:], *spans):
            models: list[Any] = [
                encoder(pooling=pooling, block_size=BLOCK, positions="rotary"),
                compressor("llama", pooling=pooling, block_size=BLOCK).encoder,
                encoder(pooling=pooling, block_size=BLOCK, exploration_noise=0.5).train(operator != "random"),
            ]
            for model in models:
                model.poolers.explore(3)
                whole = model(**batch, output_pooling=True)
                sent = group.bytes_sent
                with sharing(group):
                    ours = model(**own, output_pooling=True)
                _assert_sent(group.bytes_sent - sent, ours.pooled_stages, model, size)
                for stage, expected in zip(ours.pooled_stages, whole.pooled_stages, strict=True):
                    assert torch.equal(stage.groups_BN, expected.groups_BN), operator
                    torch.testing.assert_close(stage.weights_BN, expected.weights_BN, atol=1e-6, rtol=0)
                mine = [*part.documents(len(LENGTHS))] or [0]
                slots = ours.last_hidden_state.shape[1]
                assert torch.equal(ours.attention_mask, whole.attention_mask[mine, :slots])
                expected = whole.last_hidden_state[mine, :slots]
                torch.testing.assert_close(ours.last_hidden_state, expected, atol=2e-6, rtol=1e-5)
                assert torch.equal(ours.positions, whole.positions[mine, :slots])
                gradients = _gradients(model, own, mine, group)
                for name, value in _gradients(model, batch, range(len(LENGTHS)), None).items():
                    torch.testing.assert_close(gradients[name], value, atol=2e-6, rtol=1e-5, msg=f"{operator}: {name}")
    _assert_same_draws(group, own)


def _cut(batch: dict[str, torch.Tensor], part: Part) -> dict[str, torch.Tensor]:
    rows = [ids[: int(mask.sum())] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    rows = [row[part.tokens(len(row), document)] for document, row in enumerate(rows)]
    width = max(1, *map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long(),
    }


def _gradients(model: Any, batch: dict, documents: Any, group: ContextGroup | None) -> dict[str, torch.Tensor]:
    """Of a loss that each document adds to by itself; summed over the ranks of the group."""
    model.zero_grad()
    with sharing(group):
        encoded = model(**batch)
    targets = torch.tensor([[float(document + 1)] for document in documents])[..., None]
    if group is not None and not [*Part(group.rank, group.size, BLOCK).documents(len(LENGTHS))]:
        targets = targets * 0  # what labels that are all ignored do
    (
        encoded.last_hidden_state * targets * 1e-2 * torch.linspace(-1, 1, encoded.last_hidden_state.shape[-1])
    ).sum().backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    return {
        name: (torch.zeros(()) if grad is None else grad) if group is None else group.add_up(grad)
        for name, grad in found.items()
        if grad is not None
    }


def _assert_sent(sent: float, stages: Any, model: Any, size: int) -> None:
    """Per stage n scores and k slots; once the lengths, and what noise is drawn from."""
    numbers = 8 * len(LENGTHS) * any(pooler.explores for pooler in model.poolers.values())
    for stage in stages:
        slots = int(stage.groups_BN.max()) + 1
        width = model.get_input_embeddings().weight.shape[1]
        carried = width if getattr(model.config, "carry_embeddings", False) else 0
        numbers += 4 * (stage.scored * stage.groups_BN.numel() + len(LENGTHS) * slots * (width + carried))
    numbers += 8 * size * len(LENGTHS)
    assert sent == pytest.approx(2 * (size - 1) / size * numbers)


def _assert_same_draws(group: ContextGroup, own: dict[str, torch.Tensor]) -> None:
    """Random tokens of training are other ones each time, the same on all ranks, and leave their own dice alone."""
    model = encoder(pooling=[{"after_layer": 2, "length": 4, "operator": "random"}], block_size=BLOCK).train()
    torch.manual_seed(group.rank)
    with sharing(group):
        drawn = [model(**own, output_pooling=True).pooled_stages[0].groups_BN for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(group.add_up(drawn[0]), drawn[0] * group.size)
    after = torch.rand(1)
    assert group.size * after != group.add_up(after), "the ranks' own random states became one"


@pytest.fixture
def settings(tiny_settings) -> list[str]:
    return [
        *(*tiny_settings, "model.dropout=0", "optimizer.eps=0.001", "guards.watchdog_timeout_s=0"),
        "train={steps: 12, checkpoint_every_steps: 4, keep_last_checkpoints: 9, evaluate_every_steps: 6}",
        *("train.log_every_steps=1", "train.generate_documents=3", "train.tensorboard=false"),
        "generation={num_beams: 1, max_new_tokens: 6}",
    ]


def test_runs_of_other_groups_go_on_from_one_another(settings, tmp_path):
    """A run alone, in pairs and by four; each resumed as another, and killed. Evaluation and generation take part."""
    log = tmp_path / "log.txt"

    def train(run: str, ranks: int, size: int, stage: int = 1, **more: Any) -> None:
        own = [f"run={tmp_path / run}", f"engine.context_parallel_size={size}", f"engine.zero_stage={stage}"]
        job = forked.train(ranks, [*settings, *own, *(f"{key}={value}" for key, value in more.items())], log)
        assert set(job.codes()) == {0}, job.output()[-3000:]

    train("alone", 1, 1)
    expected = _rows(tmp_path / "alone")
    train("pair", 2, 2)
    _assert_close(_rows(tmp_path / "pair"), expected)
    for ranks, size, stage, source in ((4, 2, 2, "pair"), (4, 4, 3, "alone"), (1, 1, 1, "pair")):
        run = tmp_path / f"{source} by {size} of {ranks}"
        shutil.copytree(
            tmp_path / source, run, ignore=shutil.ignore_patterns("export", "global_step8", "global_step12")
        )
        train(run.name, ranks, size, stage)
        _assert_close(_rows(run), expected)
    # A run in pairs that was killed is the undisturbed one, to the bit.
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "pair", killed, ignore=shutil.ignore_patterns("export", "global_step12"))
    train("killed", 2, 2)
    assert _rows(killed) == _rows(tmp_path / "pair")
    assert all(row["context_mib"] > 0 for row in _rows(killed) if row["split"] == "train")


def _rows(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(run)]


def _assert_close(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    names = {"loss", "ledger", "source_tokens", "target_tokens", "num_target_tokens", "rouge1"}
    for row, wanted in zip(rows, expected, strict=True):
        for name in names & wanted.keys():
            if isinstance(wanted[name], str):
                assert row[name] == wanted[name]
            else:
                assert row[name] == pytest.approx(wanted[name], abs=2e-5), (wanted["step"], name)


def test_ranks_that_make_no_whole_groups_are_refused(tiny_settings, tmp_path):
    job = forked.train(
        2, [*tiny_settings, f"run={tmp_path / 'run'}", "engine.context_parallel_size=3"], tmp_path / "log"
    )
    assert job.codes() == [2, 2]
    assert "engine.context_parallel_size is 3, but the job has 2 ranks, which make no groups of 3" in job.output()
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_documents_that_only_one_of_them_can_read_end_the_run(tiny_settings, shards, tmp_path):
    """Its own copy of the shards is damaged; the damage would be allowed if all had it."""
    damaged = copied(shards, tmp_path / "shards")
    damage_document(damaged)
    settings = [*tiny_settings, f"run={tmp_path / 'run'}", "engine.context_parallel_size=2"]
    job = forked.Job(2, train_damaged, ([*settings, "data.max_damaged_documents=30"], damaged), tmp_path / "log")
    assert job.codes() == [2, 2], job.output()[-3000:]
    assert "ranks that share documents cannot read the same ones of this step" in job.output()


def train_damaged(settings: list[str], damaged: Path) -> None:
    from transpooler.launch.train import main

    if os.environ["RANK"] == "1":
        settings = [*settings, f"data.shards={damaged}"]
    raise SystemExit(main(settings))

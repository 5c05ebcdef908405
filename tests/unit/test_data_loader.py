"""Loader: the same global batches for any number of ranks, padding bounded, resuming free."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from data_pipeline.config import DataConfig, PrepareConfig, SourcesConfig, TokenizerConfig
from data_pipeline.loader import Loader, Step
from data_pipeline.prepare import prepare

NUM_DOCUMENTS = 27
EOS = 2


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> DataConfig:
    folder: Path = tmp_path_factory.mktemp("loader")
    rng = np.random.default_rng(0)
    records = [
        {
            "article": f"Number {i}. " + "More of it, line after line.\n" * int(rng.integers(2, 40)),
            "abstract": f"It is {i}.",
        }
        for i in range(NUM_DOCUMENTS)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "pretrain.jsonl").write_text("\n".join(json.dumps({"text": r["article"]}) for r in records))
    sources = SourcesConfig(train=(str(folder / "train.jsonl"),), pretrain=(str(folder / "pretrain.jsonl"),))
    prepare(PrepareConfig(output=str(folder / "shards"), sources=sources, tokenizer=TokenizerConfig(vocab_size=300)))
    return DataConfig(
        shards=str(folder / "shards"),
        batch_size=8,
        length_bucket_width=0.5,
        max_source_tokens=200,
        max_target_tokens=40,
    )


def loader(config: DataConfig, split: str = "train", rank: int = 0, world_size: int = 1, **values) -> Loader:
    values = {"seed": 1, "micro_batch_size": 2, **values}
    return Loader(config, split=split, rank=rank, world_size=world_size, **values)


def take(config: DataConfig, count: int, start: int = 0, **values) -> list[Step]:
    stream = loader(config, **values).steps(start)
    steps = list(itertools.islice(stream, count))
    stream.close()
    return steps


def documents(steps: list[Step]) -> list[tuple]:
    """(source, target) of all documents that are no dummies, without padding, in a fixed order."""
    rows = []
    for batch in (batch for step in steps for batch in step.micro_batches):
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            if (labels != -100).any():
                rows.append((tuple(ids[mask.bool()].tolist()), tuple(labels[labels != -100].tolist())))
    return sorted(rows)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("objective", ["summarize", "denoise"])
def test_all_ranks_together_hold_the_global_batch(config, world_size, objective):
    config = replace(config, objective=objective)
    expected = take(config, 4)
    assert sorted(len(step.keys) for step in expected) == [3, 8, 8, 8]
    ranks = [take(config, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    for t, want in enumerate(expected):
        steps = [rank[t] for rank in ranks]
        assert documents(steps) == documents([want])
        assert len(documents(steps)) == len(want.keys)
        assert {tuple(step.keys) for step in steps} == {tuple(want.keys)}
        assert {len(step.micro_batches) for step in steps} == {-(-8 // (2 * world_size))}
        assert sum(step.num_source_tokens for step in steps) == want.num_source_tokens


def test_an_epoch_holds_each_document_once(config):
    steps = take(config, 8)
    assert loader(config).steps_per_epoch == 4
    for epoch in (0, 1):
        part = steps[4 * epoch : 4 * epoch + 4]
        assert {step.epoch for step in part} == {epoch}
        assert sorted(key for step in part for key in step.keys) == [f"train-{i:08d}" for i in range(NUM_DOCUMENTS)]


@pytest.mark.parametrize("objective", ["summarize", "denoise", "gap_sentences"])
def test_resuming_is_starting_at_the_step(config, objective):
    config = replace(config, objective=objective)
    whole, resumed = take(config, 7), take(config, 3, start=4)
    for left, right in zip(whole[4:], resumed, strict=True):
        assert (left.keys, left.epoch) == (right.keys, right.epoch)
        for a, b in zip(left.micro_batches, right.micro_batches, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_noise_differs_between_epochs_and_not_in_evaluation(config):
    config = replace(config, objective="denoise", batch_size=27)
    first, second = take(config, 2, split="pretrain")
    assert documents([first]) != documents([second])
    evaluations = [documents(list(loader(config, "pretrain").evaluation_steps(10))) for _ in range(2)]
    assert evaluations[0] == evaluations[1]
    assert len(evaluations[0]) == 10


def test_limits_padding_and_types(config):
    seen_cut = False
    for step in take(config, 4, pad_multiple=64):
        for batch in step.micro_batches:
            ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
            assert {t.dtype for t in batch.values()} == {torch.int64}
            longest = int(mask.sum(1).max())
            assert ids.shape[1] == -(-longest // 64) * 64
            assert longest <= 200
            assert labels.shape[1] <= 40
            assert (ids[mask == 0] == 1).all()
            ends = ids[torch.arange(len(ids)), mask.sum(1) - 1]
            assert (ends == EOS).all()
            seen_cut |= longest == 200
    assert seen_cut


def test_a_rank_without_documents_gets_an_ignored_one(config):
    step = next(step for step in take(config, 4, rank=7, world_size=8) if len(step.keys) == 3)
    (batch,) = step.micro_batches
    assert batch["input_ids"].tolist() == [[EOS]]
    assert batch["labels"].tolist() == [[-100]]
    assert step.num_source_tokens == 0


def test_like_lengths_run_at_the_same_time(config):
    ranks = [take(config, 1, rank=rank, world_size=2)[0] for rank in range(2)]
    longest = [[int(b["attention_mask"].sum(1).max()) for b in step.micro_batches] for step in ranks]
    shortest = [[int(b["attention_mask"].sum(1).min()) for b in step.micro_batches] for step in ranks]
    assert min(s[0] for s in shortest) >= max(s[1] for s in longest)


def test_evaluation_is_one_pass_in_corpus_order(config):
    keys = [key for step in loader(config).evaluation_steps(11) for key in step.keys]
    assert keys == [f"train-{i:08d}" for i in range(11)]
    ranks = [list(loader(config, rank=rank, world_size=2).evaluation_steps(11)) for rank in range(2)]
    assert [len(step.micro_batches) for step in ranks[0]] == [len(step.micro_batches) for step in ranks[1]]
    assert len(documents(ranks[0] + ranks[1])) == 11


def test_a_missing_shard_is_an_error_in_the_step_and_dummies_keep_its_shape(config, tmp_path):
    import shutil

    shutil.copytree(config.shards, tmp_path / "copy")
    broken = loader(replace(config, shards=str(tmp_path / "copy")))
    for shard in (tmp_path / "copy/train").glob("*.tar"):
        shard.unlink()
    step = next(broken.steps(0))
    assert "train-000000.tar: damaged" in str(step.error)
    assert len(step.micro_batches) == 4


def test_user_mistakes(config, tmp_path):
    import shutil

    with pytest.raises(UserError, match="27 of 27 documents have no summary"):
        loader(config, "pretrain")
    shutil.copytree(config.shards, tmp_path / "copy")
    tokenizer = tmp_path / "copy/tokenizer/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"Ġ":', '"Ġzzz":', 1))
    with pytest.raises(UserError, match=r"not the tokenizer of the shards|cannot load the tokenizer"):
        loader(replace(config, shards=str(tmp_path / "copy")))


def test_pretraining_reads_windows_from_anywhere(config):
    """Over epochs the windows of one long document begin at many places, and each is a part of it."""
    short = replace(config, objective="gap_sentences", max_source_tokens=20)
    source = loader(short, split="pretrain")
    number = int(np.argmax(source.dataset.source_lengths))
    whole = source.dataset.read(number).source.tolist()
    starts = set()
    for epoch in range(20):
        document = source.dataset.read(number)
        ids, target = (part[:-1].tolist() for part in source._examples.example(document, "key", epoch))
        assert source.special.gap in ids
        first = list(itertools.takewhile(source.special.gap.__ne__, ids)) or target
        starts.add(next(i for i in range(len(whole)) if whole[i : i + len(first)] == first))
    assert len(starts) > 3

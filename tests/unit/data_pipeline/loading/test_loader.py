"""Loader: the same global batches for any number of ranks, padding bounded, resuming free."""

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.paths import ROOT
from transpooler.common import UserError, all_problems
from transpooler.data_pipeline.config import CorpusConfig, DataConfig, PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.loading.examples import ExampleMaker
from transpooler.data_pipeline.loading.loader import Loader, Step
from transpooler.data_pipeline.prepare.prepare import prepare

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
    shutil.copytree(config.shards, tmp_path / "copy")
    broken = loader(replace(config, shards=str(tmp_path / "copy")))
    for shard in (tmp_path / "copy/train").glob("*.tar"):
        shard.unlink()
    step = next(broken.steps(0))
    assert "train-000000.tar: damaged" in str(step.error)
    assert len(step.micro_batches) == 4
    counting = loader(replace(config, shards=str(tmp_path / "copy"), max_damaged_documents=12))
    steps = counting.steps(0)
    for before, error in ((0, "None"), (4, "None"), (5, "13 damaged documents; at most 12 allowed")):
        counting.damaged_documents = before  # the trainer says what all ranks and earlier starts have left out
        assert error in str(next(steps).error)
    passes = [[step.error for step in counting.evaluation_steps(8)] for _ in range(2)]
    assert passes == [[None], [None]], "every pass of evaluation counts anew"


def test_user_mistakes(config, tmp_path):
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
    maker = ExampleMaker(short, source.tokenizer, seed=1)
    number = int(np.argmax(source.dataset.source_lengths))
    whole = source.dataset.read(number).source.tolist()
    starts = set()
    for epoch in range(20):
        document = source.dataset.read(number)
        ids, target = (part[:-1].tolist() for part in maker.example(document, "key", epoch))
        assert source.special.gap in ids
        first = list(itertools.takewhile(source.special.gap.__ne__, ids)) or target
        starts.add(next(i for i in range(len(whole)) if whole[i : i + len(first)] == first))
    assert len(starts) > 3


@pytest.fixture
def budget(config) -> DataConfig:
    return replace(config, batch_tokens=1600, micro_batch_tokens=400, length_bucket_width=0.1)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_token_budget_gives_every_rank_the_same_number_of_micro_batches(budget, world_size):
    ranks = [take(budget, 6, rank=rank, world_size=world_size) for rank in range(world_size)]
    for steps in zip(*ranks, take(budget, 6), strict=True):
        *shares, want = steps
        assert {len(step.micro_batches) for step in shares} == {-(-4 // world_size)}
        assert documents(shares) == documents([want])
        assert {tuple(step.keys) for step in shares} == {tuple(want.keys)}
        assert all(batch["input_ids"].numel() <= 400 for step in shares for batch in step.micro_batches)
    assert len({len(step.keys) for step in ranks[0]}) > 1


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_nothing(budget, workers):
    for data in (budget, replace(budget, objective="denoise", batch_tokens=None, micro_batch_tokens=None)):
        alone, helped = take(data, 6, start=2), take(replace(data, workers=workers), 6, start=2)
        for left, right in zip(alone, helped, strict=True):
            assert left.keys == right.keys
            for a, b in zip(left.micro_batches, right.micro_batches, strict=True):
                assert all(torch.equal(a[name], b[name]) for name in a)


KILLED_WORKER = """
import itertools, multiprocessing
from transpooler.data_pipeline.loading.prefetch import in_processes
stream = in_processes(lambda number: number, 5, workers=1, ahead=2)
assert next(stream) == 5
multiprocessing.active_children()[0].kill()
list(itertools.islice(stream, 50))
"""


def test_a_worker_process_that_is_killed_is_an_error_and_no_hang():
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WORKER], cwd=ROOT, timeout=100, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "DataLoader worker" in done.stderr
    assert "Killed" in done.stderr


def test_a_mixture_marks_keys_and_reads_each_corpus_by_its_weight(config, tmp_path):
    second = CorpusConfig(name="b", shards=config.shards, split="pretrain", weight=1)
    mixture = (CorpusConfig(name="a", shards=config.shards, weight=3), second)
    mixed = replace(config, mixture=mixture, objective="gap_sentences")
    steps = take(mixed, 18)
    keys = [key for step in steps for key in step.keys]
    assert {len(step.keys) for step in steps} == {8}
    assert sum(key.startswith("a/train-") for key in keys) == 108
    assert sorted([key for key in keys if key[0] == "b"][:27]) == [f"b/pretrain-{i:08d}" for i in range(27)]
    ranks = [take(mixed, 3, rank=rank, world_size=2) for rank in range(2)]
    assert documents([step for rank in ranks for step in rank]) == documents(steps[:3])
    shutil.copytree(config.shards, tmp_path / "copy")
    index = tmp_path / "copy/pretrain/index.json"
    fingerprint = json.loads(index.read_text())["tokenizer_fingerprint"]
    index.write_text(index.read_text().replace(fingerprint, "0" * 64))
    foreign = replace(second, shards=str(tmp_path / "copy"))
    with pytest.raises(UserError, match="different tokenizers"):
        loader(replace(mixed, mixture=(mixture[0], foreign)))


def test_noise_depends_on_seed_epoch_and_key_and_not_on_shards_or_batches(config, tmp_path):
    """The same documents in other shards, other batches and other company give the same examples."""
    folder = Path(config.shards)
    sources = SourcesConfig(pretrain=(str(folder.parent / "pretrain.jsonl"),))
    output = str(tmp_path / "small")
    tokenizer = TokenizerConfig(path=str(folder / "tokenizer"))
    prepare(PrepareConfig(output=output, sources=sources, tokenizer=tokenizer, shard_size_mib=0.005))
    assert len(list((tmp_path / "small/pretrain").glob("*.tar"))) > 3
    for objective in ("denoise", "gap_sentences"):
        one = replace(config, objective=objective, train_split="pretrain")
        other = replace(one, shards=output, batch_tokens=1000, length_bucket_width=None)
        first = documents(take(one, 4, split="pretrain"))
        epoch = loader(other, split="pretrain").steps_per_epoch
        assert documents(take(other, epoch, split="pretrain")) == first
        assert documents(take(other, epoch, split="pretrain", seed=2)) != first


def test_noise_differs_between_documents(config):
    maker = loader(replace(config, objective="denoise"), split="pretrain")._examples
    document = loader(replace(config, objective="denoise"), split="pretrain").dataset.read(0)
    first, again, other = (maker.example(document, key, 1)[0].tolist() for key in ("a", "a", "b"))
    assert first == again != other


def test_settings_that_cannot_be_are_named(config):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_tokens": 100}, "batch_tokens"),
        ({"micro_batch_tokens": 400}, "micro_batch_tokens"),
        ({"batch_tokens": 400, "micro_batch_tokens": 100}, "micro_batch_tokens"),
        ({"shuffle_shards": 1, "short_first_epochs": 1}, "short_first_epochs"),
        ({"gap_selection": "best"}, "gap_selection"),
        ({"mixture": (CorpusConfig(name="a", shards="x", weight=0),)}, "mixture[0].weight"),
        ({"mixture": (CorpusConfig(name="a", shards="x"),) * 2}, "mixture"),
    ]
    for values, key in wrong:
        assert [name for name, _ in all_problems(replace(config, **values))] == [key]

"""Preparation and shards: traceable, reproducible, atomic, readable by webdataset itself."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset

from transpooler.common import UserError, sha256_of
from transpooler.data_pipeline.config import PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.prepare import tasks
from transpooler.data_pipeline.prepare.executors import Executor
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.dataset import (
    DOCUMENT_DTYPE,
    NPY_HEADER_BYTES,
    DamagedShardError,
    ShardDataset,
    token_dtype,
)
from transpooler.data_pipeline.shards.verify import find_problems
from transpooler.data_pipeline.tokenizer import load_tokenizer

OLD_DTYPE = np.dtype(DOCUMENT_DTYPE.descr[:-1])


def article(i: int) -> dict:
    return {
        "id": f"doc-{i}",
        "article": f"Document {i}. " + "Some words here, <mask> too.\n" * (5 + i),
        "abstract": f"About {i}.",
    }


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    (tmp_path / "in").mkdir()
    lines = [json.dumps(article(i)) for i in range(30)]
    lines[3:3] = ["{broken", json.dumps({"article": "tiny", "abstract": "too short a source"})]
    (tmp_path / "in/train.jsonl").write_text("\n".join(lines))
    (tmp_path / "in/notes.txt").write_text("A long note. " * 40)
    return PrepareConfig(
        output=str(tmp_path / "out"),
        sources=SourcesConfig(train=(str(tmp_path / "in/train.jsonl"),), pretrain=(str(tmp_path / "in/*.txt"),)),
        tokenizer=TokenizerConfig(vocab_size=300),
        shard_size_mib=0.02,
    )


def changed(config: PrepareConfig, **values) -> PrepareConfig:
    from dataclasses import replace

    return replace(config, **values)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_documents_come_back_and_drops_are_counted(config, capsys):
    report = prepare(config)
    out = Path(config.output)
    assert report["splits"]["train"]["dropped"] == {"bad_json": 1, "source_too_short": 1}
    assert "train.jsonl:4: dropped: bad_json" in capsys.readouterr().err
    dataset, tokenizer = ShardDataset(out / "train"), load_tokenizer(out / "tokenizer")
    assert len(dataset) == report["splits"]["train"]["documents"] == 30
    assert len(dataset.index["shards"]) > 2
    for i in (0, 7, 29, 3):
        document = dataset.read(i)
        assert document.target is not None
        assert tokenizer.decode(document.source) == article(i)["article"]
        assert tokenizer.decode(document.target) == article(i)["abstract"]
        assert document.meta["id"] == f"doc-{i}"
        assert document.meta["line"] == (i + 1 if i < 3 else i + 3)
        assert document.meta["target_text"] == article(i)["abstract"]
        assert (dataset.source_lengths[i], dataset.target_lengths[i]) == (len(document.source), len(document.target))
    note = ShardDataset(out / "pretrain").read(0)
    assert note.target is None
    assert "target_text" not in note.meta
    assert pickle.loads(pickle.dumps(dataset)).read(7).meta["id"] == "doc-7"


def test_webdataset_itself_reads_the_shards(config):
    prepare(config)
    folder = Path(config.output) / "train"
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    dataset = ShardDataset(folder)
    assert [sample["__key__"] for sample in samples] == [dataset.key(i) for i in range(30)]
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["source.npy"], dataset.read(i).source)
        np.testing.assert_array_equal(sample["target.npy"], dataset.read(i).target)
        assert sample["json"] == dataset.read(i).meta


def test_bytes_do_not_depend_on_workers_or_time(config, tmp_path):
    prepare(changed(config, workers=1))
    prepare(changed(config, workers=2, output=str(tmp_path / "again")))
    assert tree(Path(config.output)) == tree(tmp_path / "again")


def test_paths_may_be_relative(config, tmp_path, monkeypatch):
    (tmp_path / "in/test.jsonl").write_text(json.dumps(article(99)))
    sources = SourcesConfig(train=("in/train.jsonl",), test=("in/test.jsonl",))
    monkeypatch.chdir(tmp_path)
    report = prepare(changed(config, output="out", sources=sources))
    assert set(report["splits"]) == {"train", "test"}
    assert (tmp_path / "out/test/index.json").is_file()
    assert not (tmp_path / "out.incomplete").exists()


def test_a_finished_output_is_left_alone_and_never_overwritten(config, capsys):
    first = prepare(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    source = Path(config.sources.train[0])
    os.utime(source, (1, 1))  # touched, same content
    assert prepare(changed(config, workers=1)) == json.loads(json.dumps(first))
    assert "already prepared" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"other settings .min_source_tokens."):
        prepare(changed(config, min_source_tokens=17))
    source.write_text(source.read_text() + "\n" + json.dumps(article(99)))
    with pytest.raises(UserError, match="other input files"):
        prepare(config)
    assert before == {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}


def test_a_foreign_folder_is_not_touched(config):
    Path(config.output).mkdir()
    (Path(config.output) / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="did not write"):
        prepare(config)
    assert (Path(config.output) / "thesis.tex").read_text() == "precious"


def test_leftovers_of_a_killed_run_are_cleared(config, tmp_path):
    leftover = tmp_path / "out.incomplete/output/train"
    leftover.mkdir(parents=True)
    (leftover / "train-000000.tar").write_text("half")
    (tmp_path / "out.incomplete/running.incomplete").touch()
    prepare(config)
    assert not (tmp_path / "out.incomplete").exists()
    assert len(ShardDataset(tmp_path / "out/train")) == 30


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # tarfile flushes once more when collected
def test_after_a_full_disk_the_same_command_continues(config, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transpooler.data_pipeline.shards.writer._HashingFile.write", full)
        with pytest.raises(UserError, match="disk is full; free space and run the same command again"):
            prepare(config)
    assert not Path(config.output).exists()
    assert not list((tmp_path / "out.incomplete").rglob("*.tar*"))
    monkeypatch.setattr(
        "transpooler.data_pipeline.prepare.tasks._PartMaker.encode",
        lambda *_: pytest.fail("a finished task was done again"),
    )
    prepare(config)
    assert len(ShardDataset(tmp_path / "out/train")) == 30


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(config, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot write"):
        prepare(changed(config, output=str(tmp_path / "locked/out")))


def test_output_below_a_file(config):
    with pytest.raises(UserError, match="cannot write"):
        prepare(changed(config, output=config.sources.train[0] + "/out"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": SourcesConfig()}, "no input"),
        (
            {"min_source_tokens": 10**6},
            "no document of .*train.jsonl can be used; dropped: bad_json 1, source_too_short 31",
        ),
        ({"source_column": "body"}, "no record has key 'body'"),
        ({"tokenizer": TokenizerConfig(path="nowhere")}, "nowhere: no tokenizer here"),
    ],
)
def test_user_mistakes(config, values, message):
    with pytest.raises(UserError, match=message):
        prepare(changed(config, **values))
    assert not Path(config.output).exists()


def test_a_damaged_shard_is_named(config):
    prepare(config)
    folder = Path(config.output) / "train"
    shard = folder / "train-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:512] + b"\x00" * 1024 + data[1536:])
    dataset = ShardDataset(folder)
    first = dataset.index["shards"][0]["num_documents"]
    with pytest.raises(UserError, match=r"train-000001\.tar: damaged"):
        dataset.read(first)
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"train-000001\.tar: damaged shard .*bytes instead of"):
        ShardDataset(folder)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar: damaged shard .missing"):
        ShardDataset(folder)
    with pytest.raises(UserError, match="no shards here"):
        ShardDataset(folder.parent)


@pytest.mark.parametrize("member", ["source", "target", "meta"])
def test_one_flipped_bit_of_a_document_is_noticed_when_it_is_read(config, member):
    """Also where the shard keeps its size and every header is right."""
    prepare(config)
    folder = Path(config.output) / "train"
    rows = np.load(folder / "documents.npy")
    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    payload = int(rows[f"{member}_offset"][2]) + (8 if member == "meta" else NPY_HEADER_BYTES)
    data[payload] ^= 1
    shard.write_bytes(data)
    dataset = ShardDataset(folder)
    assert dataset.read(1).meta["id"] == "doc-1"
    with pytest.raises(DamagedShardError, match=r"train-000000\.tar: damaged shard: document 2 .*bytes are not those"):
        dataset.read(2)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["sha256"] = sha256_of(shard)
    (folder / "index.json").write_text(json.dumps(index))
    assert f"{shard}: damaged shard: document 2 cannot be read" in "\n".join(find_problems(folder))
    np.save(folder / "documents.npy", rows[[name for name in rows.dtype.names if name != "crc32"]].astype(OLD_DTYPE))
    assert ShardDataset(folder).read(2).key == "train-00000002"  # an earlier version wrote no checksums


def test_small_vocabularies_take_two_bytes_a_token():
    assert (token_dtype(65_536), token_dtype(65_537)) == (np.dtype("<u2"), np.dtype("<u4"))


class AllAtOnce(Executor):
    """Takes all jobs before it does the first, and remembers how many there were."""

    taken: list[int]

    def run(self, function, jobs):
        jobs = list(jobs)
        self.taken.append(len(jobs))
        for job in jobs:
            yield function(*job)


def test_the_tasks_of_all_files_of_a_split_are_one_queue(config, tmp_path, monkeypatch):
    lines = (tmp_path / "in/train.jsonl").read_text().splitlines(keepends=True)
    for i in range(6):
        (tmp_path / f"in/{i}.jsonl").write_text("".join(lines[5 + 4 * i : 9 + 4 * i]))
    monkeypatch.setattr(AllAtOnce, "taken", [], raising=False)
    monkeypatch.setattr("transpooler.data_pipeline.prepare.prepare.Executor", AllAtOnce)
    prepare(changed(config, sources=SourcesConfig(train=(str(tmp_path / "in/[0-9].jsonl"),))))
    assert AllAtOnce.taken[0] == 6
    assert [source["num_documents"] for source in ShardDataset(tmp_path / "out/train").index["sources"]] == [4] * 6


def test_a_wrong_file_among_many_is_named_before_all_are_read(config, tmp_path, monkeypatch):
    prepare(config)
    for i in range(6):
        (tmp_path / f"in/{i}.jsonl").write_text('{"body": "Some text."}\n')
    read = []

    def noting(names, *more):
        read.append(names)
        return tasks.cut_tasks(names, *more)

    monkeypatch.setattr("transpooler.data_pipeline.prepare.inputs.cut_tasks", noting)
    wrong = changed(
        config,
        output=str(tmp_path / "other"),
        workers=1,
        sources=SourcesConfig(train=(str(tmp_path / "in/[0-9].jsonl"),)),
        tokenizer=TokenizerConfig(path=str(tmp_path / "out/tokenizer")),  # training one would read them all before
    )
    with pytest.raises(UserError, match=r"0.jsonl: no record has any of the keys"):
        prepare(wrong)
    assert 0 < len(read) < 6


def test_inputs_are_hashed_once_for_all_tasks_of_an_array(config, tmp_path, monkeypatch):
    hashed = []

    def noting(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("transpooler.data_pipeline.sources.stamps.sha256_of", noting)
    prepare(config, array_task=(0, 2))
    prepare(config, array_task=(1, 2))
    assert sorted(hashed) == ["notes.txt", "train.jsonl"]
    with open(tmp_path / "in/train.jsonl", "a") as file:
        file.write("\n" + json.dumps(article(40)))
    report = prepare(config)
    assert sorted(hashed) == ["notes.txt", "train.jsonl", "train.jsonl"]
    assert report["splits"]["train"]["documents"] == 31
    assert report["inputs"]["train"][0]["sha256"] == sha256_of(tmp_path / "in/train.jsonl")

"""Inputs and outputs in a real S3 bucket: changes, foreign files, failures and kills in an upload, and `verify`."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.s3_server import s3_server  # noqa: F401
from transpooler.common import UserError
from transpooler.data_pipeline.config import PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.inspect import describe_shards
from transpooler.data_pipeline.shards.manifest import UPLOAD_NAME
from transpooler.data_pipeline.shards.store import FileStore
from transpooler.data_pipeline.shards.verify import find_problems
from transpooler.data_pipeline.sources.stamps import find_changed

KILL = """
import json, os, sys
from transpooler.data_pipeline.config import PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.store import FileStore

put, count = FileStore.put, []

def put_and_die(self, source, name):
    put(self, source, name)
    count.append(name)
    if len(count) == 3:
        os.kill(os.getpid(), 9)

FileStore.put = put_and_die
values = json.loads(sys.argv[1])
parts = {"sources": SourcesConfig(**values["sources"]), "tokenizer": TokenizerConfig(**values["tokenizer"])}
del values["clean"]
prepare(PrepareConfig(**values | parts))
"""


@pytest.fixture
def bucket(s3_server):  # noqa: F811
    import s3fs

    system = s3fs.S3FileSystem()
    yield system
    for name in system.find("bucket"):
        system.rm_file(name)


@pytest.fixture
def config(shards: Path, tmp_path: Path, bucket) -> PrepareConfig:
    rows = [{"article": f"Document {i}. " + "Some words. " * 20, "abstract": f"About {i}."} for i in range(30)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PrepareConfig(
        output="s3://bucket/papers",
        scratch=str(tmp_path / "scratch"),
        sources=SourcesConfig(train=(str(tmp_path / "train.jsonl"),)),
        tokenizer=TokenizerConfig(path=str(shards / "tokenizer")),
        shard_size_mib=0.01,
        workers=1,
    )


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tasks._PartMaker.encode", "assemble.write_shard"):
        monkeypatch.setattr(f"transpooler.data_pipeline.prepare.{name}", lambda *_: pytest.fail("work was done"))


def test_foreign_files_are_refused_and_a_missing_bucket_is_noticed_before_the_work(config, bucket, monkeypatch):
    forbid_work(monkeypatch)
    bucket.pipe_file("bucket/papers/README.md", b"my precious readme")
    with pytest.raises(UserError, match=r"did not write, such as README.md; choose another prepare.output"):
        prepare(config)
    assert bucket.cat_file("bucket/papers/README.md") == b"my precious readme"
    with pytest.raises(UserError, match=r"nobucket/papers: cannot write: .*bucket does not exist; make the bucket"):
        prepare(replace(config, output="s3://nobucket/papers"))
    assert bucket.find("bucket") == ["bucket/papers/README.md"]
    assert not list(Path(str(config.scratch)).iterdir())


def test_after_a_failed_upload_the_same_command_continues_and_stale_files_go(config, bucket, monkeypatch):
    real, names = FileStore.put, []

    def put(self, source, name):
        if self.folder is None:
            names.append(name)
            if len(names) == 4:
                raise UserError(f"{self.location}: cannot write: Connection reset by peer")
        real(self, source, name)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "put", put)
        with pytest.raises(UserError, match=r"cannot publish: .*Connection reset.*it continues with the finished work"):
            prepare(config)
    before = {name: bucket.info(name)["LastModified"] for name in bucket.find("bucket/papers")}
    assert len(before) == 4  # three shards, and the note of whose they are
    del before[f"bucket/papers/{UPLOAD_NAME}"]
    with monkeypatch.context() as patch:
        forbid_work(patch)
        prepare(config)
    assert {name: bucket.info(name)["LastModified"] for name in before} == before
    assert not list(find_problems(config.output))
    report = bucket.cat_file("bucket/papers/report.json")
    bucket.rm_file("bucket/papers/report.json")
    bucket.pipe_file(f"bucket/papers/{UPLOAD_NAME}", report)
    prepare(replace(config, shard_size_mib=1.0))  # other settings, where an upload of many shards was given up
    shards = [name for name in bucket.find("bucket/papers") if name.endswith(".tar")]
    assert shards == ["bucket/papers/train/train-000000.tar"]
    assert not list(find_problems(config.output))


def test_after_a_kill_in_the_upload_the_same_command_continues(config, bucket, monkeypatch):
    done = subprocess.run([sys.executable, "-c", KILL, json.dumps(asdict(config))], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(bucket.find("bucket/papers")) == 4
    forbid_work(monkeypatch)
    prepare(config)
    assert not list(find_problems(config.output))
    assert not list(Path(str(config.scratch)).iterdir())


def test_verify_and_inspect_read_a_url(config, bucket):
    prepare(config)
    url = config.output
    assert "papers/train: 30 documents in" in next(describe_shards(url, 1))
    assert list(find_problems(f"{url}/train")) == []
    shard = "bucket/papers/train/train-000001.tar"
    data = bytearray(bucket.cat_file(shard))
    data[3000] ^= 1
    bucket.pipe_file(shard, bytes(data))
    bucket.pipe_file("bucket/papers/train/extra.tar", b"x")
    bucket.rm_file("bucket/papers/lengths.svg")
    found = "\n".join(find_problems(url))
    assert f"{url}/train/train-000001.tar: cannot fetch (3 attempts): damaged shard: its SHA-256" in found
    assert f"{url}/train/extra.tar: not in report.json" in found
    assert f"{url}/lengths.svg: missing" in found
    assert len(found.splitlines()) == 3


def may_not_list(*_, **__):
    raise PermissionError("may not list")


def test_inputs_of_one_folder_are_compared_by_one_listing(config, bucket, monkeypatch):
    rows = Path(config.sources.train[0]).read_bytes()
    for number in range(6):
        bucket.pipe_file(f"bucket/in/{number}.jsonl", rows.replace(b"Document", b"Document %d, " % number))
    config = replace(config, sources=SourcesConfig(train=("s3://bucket/in/*.jsonl",)))
    report = prepare(config)
    assert report["splits"]["train"]["documents"] == 180
    inputs, requests = report["inputs"]["train"], []
    bucket.s3.meta.events.register("before-call.s3", lambda model, **_: requests.append(model.name))
    assert (list(find_changed(inputs)), requests) == ([], ["ListObjectsV2"])
    prepare(config)  # the inputs are as they were
    changed = "s3://bucket/in/3.jsonl"
    bucket.pipe_file(changed, bucket.cat_file(changed).replace(b"Some words", b"Sore words"))
    assert list(find_changed(inputs)) == [changed]
    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "ls", may_not_list)
        assert list(find_changed(inputs)) == [changed]
    with pytest.raises(UserError, match="from other input files, or they have changed"):
        prepare(config)

"""Preparation at scale: killed anywhere, in processes, as an array, on Ray, from and to S3: always the same bytes."""

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked
import pytest

from tests.paths import ROOT
from tests.s3_server import s3_server  # noqa: F401
from transpooler.common import UserError, sha256_of
from transpooler.data_pipeline.config import CleanConfig, PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.prepare import prepare as prepare_module
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.data_pipeline.shards.store import FileStore
from transpooler.data_pipeline.shards.verify import find_problems

WORDS = ["".join(random.Random(i).choices("abcdefghijklmnop", k=2 + i % 9)) for i in range(800)]


def write_corpus(path: Path, count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(100, 600))
        rows.append({"id": f"{seed}-{number}", "article": " ".join(words), "abstract": " ".join(words[:20])})
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PrepareConfig:
    folder = tmp_path_factory.mktemp("scale")
    rows = write_corpus(folder / "train.jsonl.gz", 300, 1)
    held = write_corpus(folder / "test.jsonl", 20, 2)
    near = {**rows[5], "id": "near", "article": rows[5]["article"] + " one more word"}
    overlap = {**held[3], "id": "overlap", "article": "before it " + held[3]["article"] + " after it"}
    with open(folder / "more.jsonl", "w") as file:
        for row in (rows[7], near, overlap, {"article": "x " * 50, "abstract": "y"}):
            file.write(json.dumps(row) + "\n")
    return PrepareConfig(
        output=str(folder / "out"),
        sources=SourcesConfig(
            train=(str(folder / "train.jsonl.gz"), str(folder / "more.jsonl")), test=(str(folder / "test.jsonl"),)
        ),
        tokenizer=TokenizerConfig(vocab_size=400, max_training_documents=20),
        clean=CleanConfig(near_duplicates=True, min_target_characters=5),
        shard_size_mib=0.1,
        task_mib=0.05,
        workers=1,
    )


@pytest.fixture(scope="module")
def expected(config: PrepareConfig) -> dict[str, str]:
    prepare(config)
    return tree(Path(config.output))


def command(config: PrepareConfig, output: Path) -> list[str]:
    def text(values) -> str:
        return "[" + ", ".join(values) + "]"

    return [
        *("prepare", "-q"),
        *(f"prepare.output={output}", f"prepare.sources.train={text(config.sources.train)}"),
        f"prepare.sources.test={text(config.sources.test)}",
        "prepare.tokenizer={vocab_size: 400, max_training_documents: 20}",
        "prepare.clean={near_duplicates: true, min_target_characters: 5}",
        *("prepare.shard_size_mib=0.1", "prepare.task_mib=0.05"),
    ]


def test_every_step_counts_what_it_drops(config, expected):
    dataset = ShardDataset(Path(config.output) / "train")
    assert dataset.index["dropped"] == {
        "exact_duplicate": 1,
        "near_duplicate": 1,
        "overlaps_held_out": 1,
        "target_too_few_characters": 1,
    }
    assert dataset.index["first_dropped"]["near_duplicate"] == [f"{config.sources.train[1]}:2"]
    assert len(dataset) == 300
    assert len(dataset.index["shards"]) > 3
    assert "near_duplicate | 1 | 0" in (Path(config.output) / "README.md").read_text()
    assert not list(find_problems(Path(config.output)))


def test_processes_give_the_same_bytes(config, expected, tmp_path):
    prepare(replace(config, output=str(tmp_path / "out"), workers=2))
    assert tree(tmp_path / "out") == expected


@pytest.mark.slow
def test_killed_at_many_points_it_continues(config, expected, tmp_path):
    """Real SIGKILLs, each a little later in the work than the one before."""
    output, kills, delay = tmp_path / "out", 0, 0.0
    for _ in range(40):
        job = forked.command(1, [*command(config, output), "prepare.workers=1"], tmp_path / "log.txt")
        scratch = output.with_name("out.incomplete")
        while job.processes[0].is_alive() and not scratch.exists():
            time.sleep(0.01)
        time.sleep(delay)
        job.kill()
        (code,) = job.codes()
        if code == 0 or output.exists():  # it may be killed after the last rename, too
            break
        assert code == -signal.SIGKILL, job.output()
        kills, delay = kills + 1, delay + 0.3
    assert kills >= 3
    assert tree(output) == expected


def test_tasks_of_an_array_share_the_work(config, expected, tmp_path, monkeypatch):
    """Three tasks at once, as SLURM starts them; the command without a task puts it together."""
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_ARRAY_TASK_MIN", "1")
        patch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
        tasks = []
        for number in range(3):
            patch.setenv("SLURM_ARRAY_TASK_ID", str(number + 1))
            tasks.append(forked.command(1, [*command(config, output), "prepare.workers=1"], tmp_path / "log.txt"))
    assert [task.codes() for task in tasks] == [[0]] * 3, tasks[0].output()
    assert not output.exists()
    parts = list(tmp_path.glob("out.incomplete/parts/train/*/*.npz"))
    assert len(parts) > 10
    times = {path: path.stat().st_mtime_ns for path in parts}
    after: dict[Path, int] = {}
    publish = prepare_module.publish

    def look_first(work: Path, target: FileStore) -> None:
        after.update({path: path.stat().st_mtime_ns for path in parts})
        publish(work, target)

    monkeypatch.setattr("transpooler.data_pipeline.prepare.prepare.publish", look_first)
    prepare(replace(config, output=str(output)))
    assert after == times, "the assembly did a finished task again"
    assert tree(output) == expected


@pytest.mark.slow
def test_ray_gives_the_same_bytes(config, expected, tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        prepare(replace(config, output=str(tmp_path / "out"), executor="ray"))
    finally:
        ray.shutdown()
    assert tree(tmp_path / "out") == expected


@pytest.fixture
def bucket(s3_server):  # noqa: F811
    """The file system of a real S3-compatible server, with a bucket named corpus."""
    s3fs = pytest.importorskip("s3fs")
    system = s3fs.S3FileSystem()
    system.mkdir("corpus")
    return system


def test_from_s3_and_to_s3(config, tmp_path, monkeypatch, bucket, capsys):
    for path in (*config.sources.train, *config.sources.test):
        bucket.put_file(path, f"corpus/in/{Path(path).name}")
    remote = replace(
        config,
        output="s3://corpus/shards",
        scratch=str(tmp_path / "scratch"),
        sources=SourcesConfig(train=("s3://corpus/in/train.jsonl.*", "s3://corpus/in/more.jsonl")),
        clean=CleanConfig(),
    )
    prepare(remote)
    assert list((tmp_path / "scratch").iterdir()) == []
    bucket.get("corpus/shards/", str(tmp_path / "back"), recursive=True)
    assert not list(find_problems("s3://corpus/shards"))
    dataset = ShardDataset(tmp_path / "back/train")
    assert len(dataset) == 302
    assert dataset.read(0).meta["file"] == "s3://corpus/in/train.jsonl.gz"
    prepare(remote)
    assert "nothing to do" in capsys.readouterr().err
    bucket.pipe_file("corpus/in/more.jsonl", b'{"article": "another", "abstract": "one"}\n')
    bucket.invalidate_cache()
    with pytest.raises(UserError, match="other input files"):
        prepare(remote)
    with pytest.raises(UserError, match="no file matches 's3://corpus/none"):
        prepare(replace(remote, sources=SourcesConfig(train=("s3://corpus/none/*.jsonl",))))


def test_verify_names_every_bad_shard(config, expected, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(config.output, out)
    first, second = out / "train/train-000001.tar", out / "train/train-000003.tar"
    data = bytearray(first.read_bytes())
    data[700] ^= 1
    first.write_bytes(data)
    second.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "transpooler", "verify", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"{first}: checksum differs" in done.stdout
    assert f"{second}: cannot read: No such file" in done.stdout
    assert "2 problems" in done.stderr
    index = json.loads((out / "test/index.json").read_text())
    (out / "test/index.json").write_text(json.dumps({**index, "tokenizer_fingerprint": "other"}))
    assert any("is not the tokenizer of" in line for line in find_problems(out / "test"))

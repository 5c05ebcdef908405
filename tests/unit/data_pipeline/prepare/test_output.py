"""Preparation removes, moves and overwrites only what it made, keeps finished work, and publishes just this run's."""

import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from transpooler.common import UserError, read_json, sha256_of
from transpooler.data_pipeline.config import PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.prepare import prepare as prepare_module
from transpooler.data_pipeline.prepare.output import open_output, user_errors
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.data_pipeline.shards.verify import find_problems
from transpooler.data_pipeline.tokenizer import load_tokenizer


def write_source(path: Path, numbers: range) -> str:
    rows = [{"article": f"Document {i}. " + "Some words. " * (9 + i % 7), "abstract": f"About {i}."} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> PrepareConfig:
    return PrepareConfig(
        output=str(tmp_path / "home/out"),
        sources=SourcesConfig(train=(write_source(tmp_path / "train.jsonl", range(20)),)),
        tokenizer=TokenizerConfig(path=str(shards / "tokenizer")),
        shard_size_mib=0.01,
        workers=1,
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder with a user's files, some of them named like ours."""
    folder = tmp_path / "scratch"
    for name in ("thesis/ch1.txt", "notes.md", "parts/train/x/a.npz", "train/a.tar", "draft.incomplete", "lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a document is tokenized or a shard written again."""
    for name in ("tasks._PartMaker.encode", "assemble.write_shard"):
        monkeypatch.setattr(
            f"transpooler.data_pipeline.prepare.{name}", lambda *_: pytest.fail("finished work was done again")
        )


@pytest.fixture
def other_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("broken", [False, True])
def test_what_lies_in_the_scratch_folder_stays(config, scratch, tmp_path, broken):
    before = tree(scratch)
    bad = tmp_path / "bad.jsonl.gz"
    bad.write_bytes(b"\x1f\x8b\x08bad")
    config = replace(config, scratch=str(scratch))
    if broken:
        with pytest.raises(UserError, match=r"bad\.jsonl\.gz"):
            prepare(replace(config, sources=SourcesConfig(train=(str(bad),))))
    else:
        prepare(config)
        assert not list(find_problems(config.output))
    assert tree(scratch) == before


def test_a_work_folder_that_is_not_ours_is_refused(config, tmp_path):
    work = tmp_path / "home/out.incomplete"
    (work / "parts").mkdir(parents=True)
    (work / "parts/mine").write_text("precious")
    with pytest.raises(UserError, match=r"out.incomplete: holds files that `transpooler prepare` did not write"):
        prepare(config)
    assert (work / "parts/mine").read_text() == "precious"
    shutil.rmtree(work)
    work.mkdir()  # a folder of the user's, but empty: it is used, and stays
    prepare(config)
    assert list(work.iterdir()) == []


def test_a_users_file_in_our_work_folder_stays(config, tmp_path, monkeypatch, capsys):
    work = tmp_path / "home/out.incomplete"

    def publish(made: Path, output) -> None:
        (work / "notes").write_text("precious")
        real(made, output)

    real = prepare_module.publish
    monkeypatch.setattr(prepare_module, "publish", publish)
    prepare(config)
    assert [path.name for path in work.iterdir()] == ["notes"]
    assert "out.incomplete: stays" in capsys.readouterr().err


def test_work_for_two_outputs_of_one_name_is_not_mixed(config, tmp_path):
    config = replace(config, scratch=str(tmp_path / "scratch"))
    prepare(config, array_task=(0, 1))
    with pytest.raises(UserError, match=r"holds unfinished work for .*home/out; finish that"):
        prepare(replace(config, output=str(tmp_path / "elsewhere/out"), min_source_tokens=3))
    prepare(replace(config, output=str(tmp_path / "elsewhere/out")))  # the same work may go elsewhere
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("output", "scratch"), [("a", "a"), ("a", "a/scratch"), ("a/a.incomplete/x/a", "a"), ("a", "link/scratch")]
)
def test_work_inside_the_output_is_refused_before_anything_is_made(config, tmp_path, output, scratch):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=r"prepare.scratch: .* lie in each other"):
        prepare(replace(config, output=str(tmp_path / output), scratch=str(tmp_path / scratch)))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("output", ["", "/", "//", "s3://", "file://", "~/../../../.."])
def test_an_output_that_names_no_folder_is_a_mistake(config, output):
    with pytest.raises(UserError, match=r"^prepare.output: .* names no"):
        prepare(replace(config, output=output))


@pytest.mark.parametrize("output", ["memory://shards", "simplecache::memory://shards"])
def test_what_nothing_would_be_left_of_is_refused(config: PrepareConfig, output: str) -> None:
    with pytest.raises(
        UserError, match=rf"^prepare.output: '{output}' ends with the process, .*use a folder or bucket$"
    ):
        prepare(replace(config, output=output))


def test_work_behind_a_url_is_refused(config: PrepareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^prepare.scratch: is 's3://bucket/work', a URL; name a folder"):
        prepare(replace(config, scratch="s3://bucket/work"))
    assert os.listdir(tmp_path) == ["train.jsonl"]


def test_the_working_folder_and_file_urls_are_outputs(config, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    prepare(replace(config, output="."))
    assert Path("report.json").is_file()
    assert not list(find_problems("."))
    prepare(replace(config, output=f"file://{tmp_path}/url"))
    assert tree(tmp_path / "url") == tree(tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did not write, such as"):
        prepare(replace(config, output="."))


@pytest.mark.parametrize("exists", [False, True])
def test_an_output_that_is_a_link_stays_one(config, tmp_path, exists):
    (tmp_path / "home").mkdir()
    (tmp_path / "big").mkdir()
    (tmp_path / "home/out").symlink_to(tmp_path / "big/shards")
    if exists:
        (tmp_path / "big/shards").mkdir()
    prepare(config)
    assert (tmp_path / "home/out").is_symlink()
    assert not list(find_problems(config.output))
    assert os.listdir(tmp_path / "big") == ["shards"]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (Exception("No space left on device (os error 28)"), UserError, "^/scratch: the disk is full; free space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), UserError, "^/scratch: the disk is full; free space"),
        (PermissionError(errno.EACCES, "Permission denied", "/out/a"), UserError, "^/out: cannot write: "),
        (UserError("/in: cannot read: No space left on device"), UserError, "^/in: cannot read"),
        (ValueError("a bug"), ValueError, "^a bug"),
    ],
)
def test_errors_of_the_file_system_name_the_folder_and_others_are_themselves(error, kind, message):
    """The tokenizer's library is written in Rust, and has exceptions of its own."""
    with pytest.raises(kind, match=message), user_errors("/out", Path("/scratch")):
        raise error


def test_an_output_on_another_disk_is_filled_and_a_failure_keeps_the_work(config, other_disk, monkeypatch):
    """The failure is real: the system refuses to write a file of this size."""
    config = replace(config, output=str(other_disk / "out"), scratch=str(Path(config.output).parent))
    work, real = Path(config.output).parent, prepare_module.publish

    def publish_with_a_limit(made: Path, output) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
        try:
            real(made, output)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(prepare_module, "publish", publish_with_a_limit)
    with pytest.raises(UserError, match=r"cannot publish: .*tar: cannot write: File too large.*it continues with"):
        prepare(config)
    monkeypatch.setattr(prepare_module, "publish", real)
    assert not (work / "out/report.json").exists()
    forbid_work(monkeypatch)
    prepare(config)
    assert not list(find_problems(config.output))
    assert not list(other_disk.glob("out/**/*.incomplete"))
    assert sorted(path.name for path in (work / "out").iterdir() if path.is_file()) == [
        "README.md",
        "lengths.svg",
        "report.json",
    ]
    assert os.listdir(Path(str(config.scratch))) == []


def test_only_the_splits_of_this_run_are_published(config, tmp_path):
    """A first run ends early, since its test split has no document; the second one has no held-out splits."""
    tiny = tmp_path / "tiny.jsonl"
    tiny.write_text('{"article": "tiny", "abstract": "short"}\n')
    held = write_source(tmp_path / "held.jsonl", range(30, 35))
    first = SourcesConfig(train=config.sources.train, validation=(held,), test=(str(tiny),))
    with pytest.raises(UserError, match=r"prepare\.sources\.test: no document"):
        prepare(replace(config, sources=first))
    assert (tmp_path / "home/out.incomplete/output/validation/index.json").is_file()
    prepare(replace(config, sources=SourcesConfig(train=(*config.sources.train, held))))
    assert sorted(os.listdir(config.output)) == ["README.md", "lengths.svg", "report.json", "tokenizer", "train"]
    assert not list(find_problems(config.output))
    assert os.listdir(tmp_path / "home") == ["out"]


def test_the_manifest_describes_every_file(config):
    prepare(config)
    files = tree(Path(config.output))
    del files["report.json"]
    recorded = read_json(Path(config.output) / "report.json")["files"]
    assert {name: entry["sha256"] for name, entry in recorded.items()} == files


def test_nobody_else_gets_in_until_the_work_is_published(config, monkeypatch):
    real, refused = prepare_module.publish, []

    def publish(made: Path, output) -> None:
        for task in (None, (0, 2)):
            with pytest.raises(UserError, match="another `transpooler prepare` is writing it"):
                prepare(config, task)
            refused.append(task)
        real(made, output)

    monkeypatch.setattr(prepare_module, "publish", publish)
    prepare(config)
    assert len(refused) == 2
    assert not list(find_problems(config.output))


def test_a_run_that_was_killed_when_it_had_published_leaves_nothing_for_ever(config, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("transpooler.data_pipeline.prepare.workspace._clear", lambda _: None)
        prepare(config)
    assert (tmp_path / "home/out.incomplete/parts").is_dir()
    prepare(config)
    assert "nothing to do" in capsys.readouterr().err
    assert os.listdir(tmp_path / "home") == ["out"]


def test_each_preparation_of_a_process_uses_its_own_tokenizer(config, tmp_path):
    prepare(replace(config, tokenizer=TokenizerConfig(vocab_size=280)))
    shutil.rmtree(config.output)
    write_source(tmp_path / "train.jsonl", range(40, 80))
    prepare(config)
    dataset, tokenizer = ShardDataset(Path(config.output) / "train"), load_tokenizer(Path(config.output) / "tokenizer")
    assert tokenizer.decode(dataset.read(0).source) == "Document 40. " + "Some words. " * 14


def test_the_place_is_tried_before_the_work(config, tmp_path, monkeypatch):
    forbid_work(monkeypatch)
    (tmp_path / "file").touch()
    scratch = str(tmp_path / "scratch")
    with pytest.raises(UserError, match=r"file/out: cannot write.*file.*; choose another prepare.output"):
        prepare(replace(config, output=str(tmp_path / "file/out"), scratch=scratch))
    with pytest.raises(UserError, match="file: is a file"):
        prepare(replace(config, output=str(tmp_path / "file"), scratch=scratch))
    assert open_output(str(tmp_path / "a/../b")).location == str(tmp_path.resolve() / "b")

"""`verify` names every damage of an output, and reading a damaged document is a DamagedShardError."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from transpooler.common import UserError, read_json, write_json
from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.loading.loader import Loader
from transpooler.data_pipeline.shards.dataset import NPY_HEADER_BYTES, DamagedShardError, ShardDataset, checksum
from transpooler.data_pipeline.shards.inspect import describe_shards
from transpooler.data_pipeline.shards.verify import find_problems
from transpooler.data_pipeline.tokenizer import train_tokenizer


@pytest.fixture
def out(shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(shards, tmp_path / "out")
    return tmp_path / "out"


def flip(name: str, field: str, bit: int, number: int = 2) -> Callable[[Path], None]:
    """Flip one bit of a document's row."""

    def change(out: Path) -> None:
        rows = np.load(out / name)
        rows[field][number] ^= rows.dtype[field].type(1 << bit)
        np.save(out / name, rows)

    return change


def swap(out: Path) -> None:
    rows = np.load(out / "train/documents.npy")
    rows["source_offset"][[2, 3]] = rows["source_offset"][[3, 2]]
    np.save(out / "train/documents.npy", rows)


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        text = (out / name).read_text()
        assert old in text
        (out / name).write_text(text.replace(old, new, 1))

    return change


ROWS = "train/documents.npy"
OFFSETS = ("source_offset", "target_offset", "meta_offset")
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{field} bit {bit}": (flip(ROWS, field, bit), ROWS) for field in OFFSETS for bit in (0, 12, 62)},
    **{f"{field} bit {bit}": (flip(ROWS, field, bit), ROWS) for field in ("shard", "meta_bytes") for bit in (0, 31)},
    "swapped offsets": (swap, ROWS),
    "empty documents.npy": (lambda out: (out / ROWS).write_bytes(b""), ROWS),
    "split gone": (lambda out: shutil.rmtree(out / "validation"), "out/validation: missing"),
    "report gone": (lambda out: (out / "report.json").unlink(), "report.json: missing"),
    "report changed": (edit("report.json", '"documents": 24', '"documents": 25'), "report.json: differs"),
    "index gone": (lambda out: (out / "test/index.json").unlink(), "test/index.json: missing"),
    "index changed": (edit("test/index.json", '"dropped"', '"drooped"'), "test/index.json: checksum differs"),
    "index of other counts": (edit("test/index.json", '"num_documents": 5', '"num_documents": 6'), "test/index.json"),
    "orphan shard": (lambda out: (out / "train/train-000009.tar").write_bytes(b"x"), "000009.tar: not in report.json"),
    "stale split": (lambda out: shutil.copytree(out / "test", out / "pretrain"), "out/pretrain: not in report.json"),
    "card changed": (lambda out: (out / "README.md").write_text("other"), "README.md: 5 bytes instead of"),
    "tokenizer gone": (lambda out: shutil.rmtree(out / "tokenizer"), "out/tokenizer: missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_every_damage_is_named(out, name):
    damage, want = DAMAGE[name]
    damage(out)
    assert want in "\n".join(find_problems(out))


def test_an_undamaged_output_and_its_splits_are_well(out, monkeypatch):
    assert list(find_problems(out)) == []
    monkeypatch.chdir(out / "train")
    (out / ".gitattributes").touch()  # hidden files are those of other tools
    assert list(find_problems(".")) == []
    assert list(find_problems(out / "train")) == []
    (out / "train/notes").touch()
    assert list(find_problems("../test")) == []
    assert list(find_problems(out / "train")) == [f"{out}/train/notes: not in report.json"]
    with pytest.raises(UserError, match="no shards here"):
        list(find_problems(out / "tokenizer"))


@pytest.mark.parametrize("name", ["a#b", "a?b", "{a,b}", "a::b", "a[1]*", "a b", "ü"])
def test_a_folder_may_have_any_name(out, name):
    shutil.move(out / "test", out.parent / name)
    (out / name).mkdir()
    shutil.move(out.parent / name, out / name / "test")
    shutil.copytree(out / "tokenizer", out / name / "tokenizer")
    assert list(find_problems(out / name / "test")) == []
    assert f"{out}/{name}/test: 5 documents in 1 shards" in next(describe_shards(out / name / "test", 1))


def test_shards_of_an_earlier_version_are_read_and_what_cannot_be_compared_is_said(out, capsys):
    report = read_json(out / "report.json")
    del report["files"], report["sha256"]
    write_json(out / "report.json", report)
    assert list(find_problems(out)) == []
    assert "no list of files in report.json" in capsys.readouterr().err
    flip(ROWS, "source_offset", 3)(out)
    assert "document 2 cannot be read" in "\n".join(find_problems(out))
    (out / "report.json").unlink()
    assert list(find_problems(out / "test")) == []  # a split alone


@pytest.mark.parametrize("field", [*OFFSETS, "shard", "source_tokens", "target_tokens", "meta_bytes", "crc32"])
@pytest.mark.parametrize("bit", [0, 8, 31, 63])
def test_a_damaged_row_is_a_damaged_document(out, field, bit):
    if bit == 63 and not field.endswith("offset"):
        return
    flip(ROWS, field, bit)(out)
    dataset = ShardDataset(out / "train")
    with pytest.raises(DamagedShardError, match=r"damaged.*document 2"):
        dataset.read(2)
    assert dataset.read(3).key == "train-00000003"


@pytest.mark.parametrize("old", ['"shards"', '"token_dtype"', '"num_documents": 24', '"uint16"', '"format": 1'])
def test_a_damaged_index_is_named(out, old):
    edit("train/index.json", old, f"{old[0]}x{old[2:]}")(out)
    with pytest.raises(UserError, match=r"train/index\.json"):
        ShardDataset(out / "train")


def write_token(out: Path, token: int) -> None:
    """Put a token at the start of a document's source, as a program would that wrote all checksums anew."""
    shard, table = out / "train/train-000000.tar", np.load(out / ROWS)
    row, content = table[2], bytearray(shard.read_bytes())
    begin = int(row["source_offset"]) + NPY_HEADER_BYTES
    content[begin : begin + 2] = token.to_bytes(2, "little")
    sides = {}
    for side in ("source", "target"):
        start = int(row[f"{side}_offset"]) + NPY_HEADER_BYTES
        sides[side] = np.frombuffer(bytes(content), "<u2", int(row[f"{side}_tokens"]), start)
    start = int(row["meta_offset"])
    table[2]["crc32"] = checksum(bytes(content[start : start + int(row["meta_bytes"])]), **sides)
    shard.write_bytes(content)
    np.save(out / ROWS, table)


def test_a_token_that_is_none_of_the_vocabulary_is_a_damaged_document(out):
    write_token(out, 299)
    assert ShardDataset(out / "train").read(2).source[0] == 299
    write_token(out, 300)
    with pytest.raises(DamagedShardError, match=r"document 2 cannot be read \(it holds id 300, the vocabulary has 300"):
        ShardDataset(out / "train").read(2)


def test_a_split_of_another_tokenizer_is_not_decoded(out):
    train_tokenizer(iter(["other words"]), 290).save_pretrained(out / "tokenizer")
    with pytest.raises(UserError, match="its tokenizer is not the tokenizer of the shards in"):
        list(describe_shards(out, 1))
    assert list(describe_shards(out, 0))


def test_a_vocabulary_that_the_tokenizer_does_not_have_is_refused(out):
    edit("train/index.json", '"vocab_size": 300', '"vocab_size": 301')(out)
    with pytest.raises(UserError, match="its tokenizer is not the tokenizer of the shards in"):
        Loader(DataConfig(shards=str(out)), split="train", seed=0, rank=0, world_size=1, micro_batch_size=1)


def test_damaged_documents_are_left_out_of_training(out):
    flip(ROWS, "shard", 20)(out)
    data = DataConfig(shards=str(out), batch_size=24, max_source_tokens=64, max_target_tokens=16)
    for limit, error in ((0, "document 2 is in shard"), (1, None)):
        config = replace(data, max_damaged_documents=limit)
        stream = Loader(config, split="train", seed=1, rank=0, world_size=1, micro_batch_size=4).steps(0)
        step = next(stream)
        stream.close()
        assert (error or "") in str(step.error)
        assert len(step.damage) == 1

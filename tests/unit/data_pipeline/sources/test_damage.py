"""Damaged inputs of every kind are named, wherever the damage lies; what is merely unusual is read."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from transpooler.common import UserError
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.documents import Dropped, RawDocument, read_documents
from transpooler.data_pipeline.sources.locations import resolve_paths
from transpooler.data_pipeline.sources.records import DamagedFileError

ROWS = [{"id": f"paper-{i}", "article": f"the source text {i} " * 20, "abstract": f"summary {i}"} for i in range(40)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
KINDS = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "blocks.jsonl.zst", "a.parquet", "a.tar")


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def members_of(rows: list[dict]) -> list[tuple[str, bytes]]:
    return [(f"{row['id']}.{key}", row[key].encode()) for row in rows for key in ("article", "abstract")]


def write(path: Path) -> bytes:
    """Write ROWS as the kind of file that the name says; returns the bytes."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=10)
    elif path.suffix == ".tar":
        write_tar(path, members_of(ROWS))
    elif path.name.startswith("blocks"):  # a flushed block ends inside the frame, at the end of a line
        frame = zstandard.ZstdCompressor().compressobj()
        parts = [frame.compress(LINES[: LINES.index(b"paper-20") - 8]), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
        path.write_bytes(b"".join([*parts, frame.compress(LINES[LINES.index(b"paper-20") - 8 :]), frame.flush()]))
    else:
        pack: Any = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(LINES))
    return path.read_bytes()


def read(path: Path | str, require_target: bool = True) -> list:
    return list(read_documents([path], Columns.choose(require_target=require_target)))


def where_to_cut(name: str, data: bytes) -> list[int]:
    cuts = [1, 5, len(data) // 3, len(data) // 2, len(data) - 9]
    if name == "a.tar":  # in a header, at a member's end, before the closing zeros
        cuts = [1, 5, 512 * 10 + 100, 512 * 8 + 1, 512 * 4, data.rindex(b"ustar") // 512 * 512 + 1024]
    if name.startswith("blocks"):
        cuts += [
            next(n for n in range(20, len(data)) if zstandard.ZstdDecompressor().decompressobj().decompress(data[:n]))
        ]
    return cuts


@pytest.mark.parametrize("name", KINDS)
def test_a_file_cut_anywhere_is_named_and_a_whole_one_read(tmp_path: Path, name: str) -> None:
    data = write(tmp_path / name)
    assert [(item.id, item.source, item.target) for item in read(tmp_path / name)] == [
        tuple(row.values()) for row in ROWS
    ]
    for cut in where_to_cut(name, data):
        (tmp_path / name).write_bytes(data[:cut])
        with pytest.raises(DamagedFileError, match=rf"{name}:\d+: broken "):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar"])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd nonsense" * 100)
    with pytest.raises(DamagedFileError, match=f"{name}:1: broken"):
        read(tmp_path / name)


@pytest.mark.parametrize("offset", [148, 0, 257])
def test_a_tar_with_a_bad_header_or_zeros_in_the_middle_is_named(tmp_path: Path, offset: int) -> None:
    data = bytearray(write(tmp_path / "a.tar"))
    middle = len(data) // 2048 * 1024 // 1024 * 1024
    if offset:
        header = data.index(b"ustar", len(data) // 4) - 257
        data[header + offset] ^= 0x15
    else:
        data[middle : middle + 2048] = bytes(2048)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"a\.tar:\d+: broken tar"):
        read(tmp_path / "a.tar")


@pytest.mark.parametrize("name", [*KINDS, "rows.parquet"])
def test_a_file_without_records_gives_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    assert read(path) == []
    if path.suffix in (".gz", ".zst"):
        path.write_bytes(gzip.compress(b"\n") if path.suffix == ".gz" else zstandard.compress(b""))
        assert read(path) == []
    if name == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS)[:0], path)
        assert read(path) == []


def test_a_zstd_file_with_a_long_window_is_read(tmp_path: Path) -> None:
    block = (len(LINES) << 3 | 1).to_bytes(3, "little") + LINES  # the last one, stored as it is
    data = b"\x28\xb5\x2f\xfd" + b"\0" + bytes([21 << 3]) + block  # a window of 2^(10 + 21) bytes, as of --long=31
    assert zstandard.get_frame_parameters(data).window_size == 1 << 31
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    assert len(read(tmp_path / "a.jsonl.zst")) == len(ROWS)


def test_a_tar_made_on_a_mac_and_members_given_twice(tmp_path: Path) -> None:
    members = [item for name, data in members_of(ROWS[:3]) for item in ((f"._{name}", b"\0\5\x16\7"), (name, data))]
    path = write_tar(tmp_path / "a.tar", [*members, ("x.article", b"one"), ("x.article", b"two"), ("x.abstract", b"s")])
    *good, twice = read(path)
    assert [(item.id, item.source) for item in good] == [(row["id"], row["article"]) for row in ROWS[:3]]
    assert twice == Dropped("duplicate_member", str(path), 4)
    path = write_tar(tmp_path / "b.tar", [*members_of(ROWS[:3]), ("x.json", b'{"article": ')])
    assert read(path)[3] == Dropped("bad_json", str(path), 4)


TEXT = "a text"


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([b"fine", b"\xff", "é".encode(), None], pyarrow.string(), ["fine", "not_utf8", "é", "missing_source"]),
        ([TEXT, None], pyarrow.large_string(), [TEXT, "missing_source"]),
        ([TEXT, TEXT], pyarrow.string_view(), [TEXT, TEXT]),
        ([TEXT, TEXT], pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), [TEXT, TEXT]),
        ([[[TEXT], ["b"]], [["c"]]], pyarrow.list_(pyarrow.large_list(pyarrow.string())), [f"{TEXT}\nb", "c"]),
        ([TEXT, TEXT, b"\xff"], pyarrow.binary(), [TEXT, TEXT, "not_utf8"]),
    ],
)
def test_one_bad_text_of_a_parquet_file_drops_its_row(tmp_path: Path, values: list, kind, expected: list) -> None:
    raw = any(isinstance(value, bytes) for value in values)
    column = pyarrow.array(values, pyarrow.binary()).view(kind) if raw else pyarrow.array(values, kind)
    ids = pyarrow.array([2**62, 7, 1, 3][: len(values)], pyarrow.timestamp("ms"))  # a year that Python does not know
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "text": column}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", require_target=False)
    assert [item.source if isinstance(item, RawDocument) else item.reason for item in found] == expected


def test_a_column_without_texts_is_of_the_wrong_type(tmp_path: Path) -> None:
    times = pyarrow.array([2**62], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"text": times}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="wrong_type"):
        read(tmp_path / "a.parquet", require_target=False)


def test_texts_that_cannot_be_seen_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("a", "\u200b\u2060", "\0\0"))
    )
    assert [getattr(item, "reason", None) for item in read(tmp_path / "a.jsonl", False)] == [
        None,
        *["empty_source"] * 2,
    ]


def test_text_from_pdftotext_is_joined_as_summarize_joins_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"selec-\r\ntion\n\x0cpage two")
    assert read(tmp_path / "a.txt", require_target=False)[0].source == "selection\n\npage two"


def test_splits_of_saved_datasets(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    rows.select([]).save_to_disk(tmp_path / "none")
    assert len(read(f"datasets://{tmp_path}/one")) == len(read(f"datasets://{tmp_path}/splits")) == len(ROWS)
    assert read(f"datasets://{tmp_path}/none") == []
    with pytest.raises(UserError, match="is one saved dataset and holds no splits; leave"):
        read(f"datasets://{tmp_path}/one?split=nope")
    with pytest.raises(UserError, match="has no split 'nope'; it has train"):
        read(f"datasets://{tmp_path}/splits?split=nope")


def test_remote_names_with_brackets_and_connections_that_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/brackets/br[1].jsonl", LINES)
    memory.pipe("/brackets/cut.jsonl.gz", gzip.compress(LINES)[:-30])
    assert len(read(resolve_paths(["memory://brackets/br[1].jsonl"])[0])) == len(ROWS)
    with pytest.raises(DamagedFileError, match=r"memory://brackets/cut.jsonl.gz:\d+: broken gzip"):
        read("memory://brackets/cut.jsonl.gz")

    class LostError(Exception):
        """As botocore's: no OSError."""

    def lose(self, *args: object) -> bytes:
        raise LostError("the connection was lost")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", lose)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.readline", lose, raising=False)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.__next__", lose, raising=False)
    with pytest.raises(UserError, match="cannot read: the connection was lost; check network") as caught:
        read("memory://brackets/cut.jsonl.gz")
    assert not isinstance(caught.value, DamagedFileError)

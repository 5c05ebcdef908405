"""A preparation among whose inputs some are damaged or empty: it stops and names them, or leaves them out whole."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from transpooler.common import UserError, read_json
from transpooler.data_pipeline.config import CleanConfig, PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.data_pipeline.tokenizer import load_tokenizer, train_tokenizer

ROWS = [{"article": f"The document {i} has some words. " * 8, "abstract": f"About {i}."} for i in range(40)]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    (tmp_path / "a.jsonl").write_bytes(b"".join(LINES[:20]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(LINES[20:30]))[:-12])
    (tmp_path / "c.jsonl").write_bytes(b"{broken\n{broken\n" + LINES[30])
    (tmp_path / "d.jsonl").touch()
    (tmp_path / "e.jsonl").write_bytes(LINES[31])
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"A text of its own, number {number}. " * 9)
    cut = json.dumps({"article_id": "x", "article_text": ["one ."] * 30})
    (tmp_path / "1.txt").write_text(f"{cut}\n{cut[:-7]}")
    sources = SourcesConfig(train=(str(tmp_path / "*.jsonl*"),), pretrain=(str(tmp_path / "?.txt"),))
    return PrepareConfig(
        output=str(tmp_path / "out"),
        sources=sources,
        tokenizer=TokenizerConfig(vocab_size=300),
        task_mib=0.001,
        workers=1,
        keep_source_text=True,
    )


def documents(config: PrepareConfig, split: str = "train") -> list[tuple[list[int], str]]:
    dataset = ShardDataset(Path(config.output) / split)
    read = [dataset.read(i) for i in range(len(dataset))]
    return [(document.source.tolist(), Path(document.meta["file"]).name) for document in read]


def test_a_damaged_file_stops_the_run_or_is_left_out_whole(config: PrepareConfig, tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match=r"(b\.jsonl\.gz|1\.txt):\d+: broken "):
        prepare(config)
    skipping = replace(config, on_bad_file="skip")
    report = prepare(skipping)
    assert report["splits"]["train"]["dropped"] == {"bad_file": 2, "empty_file": 1}
    assert report["splits"]["pretrain"]["dropped"] == {"bad_file": 1}
    error = capsys.readouterr().err
    assert "b.jsonl.gz:10: broken gzip file" in error
    assert "d.jsonl: dropped: empty_file" in error
    # The same documents, of the same tokenizer, as without the bad files.
    good = SourcesConfig(
        train=(str(tmp_path / "a.jsonl"), str(tmp_path / "e.jsonl")), pretrain=(str(tmp_path / "[02].txt"),)
    )
    prepare(replace(config, output=str(tmp_path / "good"), sources=good))
    for split in ("train", "pretrain"):
        assert documents(skipping, split) == documents(replace(config, output=str(tmp_path / "good")), split)


def test_skipping_goes_on_with_what_was_done_and_gives_the_same_bytes(config: PrepareConfig, tmp_path: Path) -> None:
    from tests.unit.data_pipeline.prepare.test_prepare import tree

    named = replace(config, on_bad_file="skip", tokenizer=TokenizerConfig(path=str(tmp_path / "tokenizer")))
    train = replace(config, sources=SourcesConfig(train=(str(tmp_path / "a.jsonl"),)), output=str(tmp_path / "first"))
    prepare(train)
    (tmp_path / "first/tokenizer").rename(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="broken gzip"):
        prepare(replace(named, on_bad_file="stop"))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.incomplete").rglob("*.npz")}
    assert made
    prepare(named, (0, 1))  # an array task leaves parts, and the note of each finished file comes with the last run
    assert made.items() <= {path: path.stat().st_mtime_ns for path in made}.items()
    with pytest.raises(UserError, match="broken gzip"):
        prepare(replace(named, on_bad_file="stop"))
    prepare(named)
    prepare(replace(named, output=str(tmp_path / "again"), workers=2))
    assert tree(Path(named.output)) == tree(tmp_path / "again")


def test_held_out_splits_with_the_same_documents_are_told(config: PrepareConfig, tmp_path: Path, capsys) -> None:
    (tmp_path / "f.jsonl").write_bytes(b"".join(LINES[31:33]))
    names = {"train": "a", "validation": "e", "test": "f"}
    sources = SourcesConfig(**{split: (str(tmp_path / f"{name}.jsonl"),) for split, name in names.items()})
    prepare(replace(config, sources=sources))
    assert "1 documents of test are in validation, too" in capsys.readouterr().err


def test_nothing_left_is_refused_with_the_counts(config: PrepareConfig, tmp_path: Path) -> None:
    sources = SourcesConfig(train=(str(tmp_path / "a.jsonl"),), test=(str(tmp_path / "d.jsonl"), str(tmp_path / "b*")))
    with pytest.raises(UserError, match=r"prepare.sources.test: no document .* dropped: bad_file 1, empty_file 1"):
        prepare(replace(config, sources=sources, on_bad_file="skip"))


def test_what_was_skipped_once_stops_a_run_that_does_not_skip(config: PrepareConfig, tmp_path: Path) -> None:
    train, clean = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz")), CleanConfig(held_out_overlap=None)
    train_tokenizer(iter(["some words"]), 262).save_pretrained(tmp_path / "tk")
    config = replace(config, tokenizer=TokenizerConfig(path=str(tmp_path / "tk")), clean=clean)
    config = replace(config, sources=SourcesConfig(train=train, test=(str(tmp_path / "d.jsonl"),)))
    with pytest.raises(UserError, match=r"prepare\.sources\.test: no document"):  # after train was read
        prepare(replace(config, on_bad_file="skip"))
    config = replace(config, sources=SourcesConfig(train=train, test=(str(tmp_path / "e.jsonl"),)))
    with pytest.raises(UserError, match="broken gzip"):
        prepare(config)


def test_a_file_that_changes_while_it_is_read_is_named(config: PrepareConfig, tmp_path: Path, monkeypatch) -> None:
    from transpooler.data_pipeline.prepare import prepare as module

    path = tmp_path / "a.jsonl"
    real = module.make_parts

    def grow(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        with open(path, "ab") as file:
            file.write(LINES[39])

    monkeypatch.setattr(module, "make_parts", grow)
    config = replace(config, sources=SourcesConfig(train=(str(path),)))
    with pytest.raises(UserError, match=r"a\.jsonl: changed while it was read; when it is complete"):
        prepare(config)
    monkeypatch.undo()
    assert prepare(config)["splits"]["train"]["documents"] == 21


def test_the_cleaning_lies_with_the_tokenizer_and_long_texts_have_their_ids(
    config, tmp_path: Path, monkeypatch
) -> None:
    raw = "Cafe\u0301 </s> one.\r\nTwo\x00 <mask> words. " * 60
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": raw}) + "\n")
    monkeypatch.setattr("transpooler.data_pipeline.prepare.tasks._ENCODE_CHARACTERS", 1000)
    for algorithm in ("bpe", "unigram"):
        settings = TokenizerConfig(vocab_size=300 if algorithm == "bpe" else 40, algorithm=algorithm)
        sources = SourcesConfig(pretrain=(str(tmp_path / "x.jsonl"),))
        one = replace(config, sources=sources, tokenizer=settings, output=str(tmp_path / algorithm))
        prepare(one)
        tokenizer = load_tokenizer(Path(one.output) / "tokenizer")
        ((ids, _),) = documents(one, "pretrain")
        assert ids == tokenizer(raw).input_ids
        assert not np.isin(ids, tokenizer.all_special_ids).any()
        assert read_json(Path(one.output) / "report.json")["settings"]["clean"]["unicode_form"] == "NFC"


def test_a_special_token_of_one_character_drops_the_document(config: PrepareConfig, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"?": 0, "#": 1, "a": 2, "b": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "tk").mkdir()
    backend.save(str(tmp_path / "tk/tokenizer.json"))
    (tmp_path / "tk/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "#", "unk_token": "?"})
    )
    (tmp_path / "y.jsonl").write_text("".join(json.dumps({"text": text * 9}) + "\n" for text in ("a b c ", "a # b ")))
    report = prepare(
        replace(
            config,
            sources=SourcesConfig(pretrain=(str(tmp_path / "y.jsonl"),)),
            tokenizer=TokenizerConfig(path=str(tmp_path / "tk")),
        )
    )
    assert report["splits"]["pretrain"]["dropped"] == {"holds_special_token": 1}

"""Cleaning and filters: each setting alone, at its border, and as `prepare` applies and counts it."""

import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transpooler.common import read_json
from transpooler.data_pipeline.config import CleanConfig, PrepareConfig, SourcesConfig, TokenizerConfig
from transpooler.data_pipeline.prepare.clean import clean_text, find_length_problem, find_quality_problem, hash_content
from transpooler.data_pipeline.prepare.prepare import prepare
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.data_pipeline.tokenizer import load_tokenizer

OFF = CleanConfig(unicode_form=None, control_characters=False)
PROSE = " ".join(f"word{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}{'uvwxyz'[i // 100]}" for i in range(300))


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("NFC", "e\u0301", "\u00e9"),
        ("NFD", "\u00e9", "e\u0301"),
        ("NFKC", "\ufb01n \u00b2", "fin 2"),
        ("NFKD", "\ufb01\u00e9", "fie\u0301"),
        ("NFC", "\ufb01", "\ufb01"),
        (None, "e\u0301", "e\u0301"),
    ],
)
def test_normal_forms(form, text, expected):
    assert clean_text(text, replace(OFF, unicode_form=form)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x00b\x1fc\x7fd\x9fe", "abcde"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("\ufeffa\ufeffb\uffffc", "abc"),
        ("a\u200bb\u00a0c\u3000d", "a\u200bb\u00a0c\u3000d"),
    ],
)
def test_control_characters_go_and_white_space_stays(text, expected):
    assert clean_text(text, replace(OFF, control_characters=True)) == expected
    assert clean_text(text, OFF) == text


@given(st.text(), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD", None]))
@settings(max_examples=80, deadline=None)
def test_cleaning_twice_is_cleaning_once(text, form):
    config = CleanConfig(unicode_form=form)
    once = clean_text(text, config)
    assert clean_text(once, config) == once
    assert not any(unicodedata.category(character) == "Cc" and character not in "\t\n" for character in once)


@pytest.mark.parametrize(
    ("values", "source", "target", "problem"),
    [
        ({}, "a", "b", None),
        ({}, " \n", "b", "empty_source"),
        ({}, "a", "", "empty_target"),
        ({}, "a", None, None),
        ({"min_source_characters": 4}, "abcd", "b", None),
        ({"min_source_characters": 4}, "abc", "b", "source_too_few_characters"),
        ({"max_source_characters": 4}, "abcd", "b", None),
        ({"max_source_characters": 4}, "abcde", "b", "source_too_many_characters"),
        ({"min_target_characters": 4}, "a", "abc", "target_too_few_characters"),
        ({"min_target_characters": 4}, "a", None, None),
        ({"max_target_characters": 4}, "abcde", "abcd", None),
        ({"max_target_characters": 4}, "a", "abcde", "target_too_many_characters"),
        ({"max_target_source_ratio": 0.5}, "abcd", "ab", None),
        ({"max_target_source_ratio": 0.5}, "abcd", "abc", "target_source_ratio"),
    ],
)
def test_lengths_in_characters(values, source, target, problem):
    assert find_length_problem(source, target, replace(OFF, **values)) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PROSE, None),
        ("El niño comió. 数学は楽しい。 Наука и жизнь, снова.", None),
        ("数学は楽しいので毎日勉強しています" * 3, None),  # no spaces, but no words of 48 letters either
        ("12 + 34 = 46; " * 3 + "one", "quality_few_letters"),
        ("Loremipsumdolorsitamet" + " consecteturadipiscingelit" * 2, "quality_long_words"),
        (PROSE + ("\nAll rights reserved to us." * 60), "quality_repeated_lines"),
        (PROSE + " one two three four five" * 60, "quality_repeated_words"),
    ],
)
def test_quality(text, problem):
    assert find_quality_problem(text, CleanConfig()) == problem


@pytest.mark.parametrize(
    ("values", "text", "problem"),
    [
        ({"min_letter_share": 0.8}, "abc 123", "quality_few_letters"),
        ({"min_letter_share": 0.4}, "abc 123", None),
        ({"max_mean_word_characters": 3}, "four five", "quality_long_words"),
        ({"max_mean_word_characters": 4}, "four five", None),
        ({"max_repeated_line_share": 0.4}, "same line\nsame line", "quality_repeated_lines"),
        ({"max_repeated_line_share": 0.5, "max_repeated_words_share": 1}, "same line\nsame line", None),
        ({"max_repeated_words_share": 0.4}, "a b c d e a b c d e", "quality_repeated_words"),
        ({"max_repeated_words_share": 0.5}, "a b c d e a b c d e", None),
    ],
)
def test_quality_limits_mean_what_they_say(values, text, problem):
    assert find_quality_problem(text, CleanConfig(**values)) == problem


def test_equal_content_is_equal_up_to_case_and_spacing():
    assert hash_content("Some  text\n here") == hash_content("some TEXT here ")
    assert hash_content("some text here") != hash_content("some text there")


def test_equal_content_of_long_texts_is_found_in_pieces(monkeypatch):
    text = " \n".join(["Some  TEXT here", "a\u03a3 \u03a3", "end "] * 7)
    whole = hash_content(text)
    monkeypatch.setattr("transpooler.data_pipeline.prepare.clean._HASHED_CHARACTERS", 3)
    assert hash_content(text) == whole == hash_content(" ".join(text.split()))


def test_documents_that_differ_in_numbers_are_no_copies(tmp_path):
    draw = random.Random(0)
    invoice = (
        "Invoice {} of {} for {} pieces at {} each, to be paid by {} into account {} under number {} in total {}. " * 3
    )
    rows = [" ".join(str(draw.randrange(10**6)) for _ in range(60)) for _ in range(20)]
    rows += [invoice.format(*(draw.randrange(10**4) for _ in range(24))) for _ in range(20)]
    rows += ["*** --- ### " * 9, "+++ === ??? " * 9, "!! " * 30]  # no words at all
    rows += [rows[0], rows[25]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    report = prepare(
        PrepareConfig(
            output=str(tmp_path / "out"),
            sources=SourcesConfig(pretrain=(str(tmp_path / "in.jsonl"),)),
            tokenizer=TokenizerConfig(vocab_size=300),
            clean=CleanConfig(near_duplicates=True, exact_duplicates=False),
        )
    )
    assert report["splits"]["pretrain"]["dropped"] == {"near_duplicate": 2}


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    rows = [
        {"article": PROSE + " cafe\u0301\x00", "abstract": "Prose words."},
        {"article": PROSE.upper() + " CAFE\u0301 ", "abstract": "The same in capitals."},
        {"article": "0123 4567 " * 40 + PROSE[:100], "abstract": "Numbers, above all."},
        {"article": PROSE[:200], "abstract": PROSE[:190]},
        {"article": PROSE[300:], "abstract": "Another part of it."},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PrepareConfig(
        output=str(tmp_path / "out"),
        sources=SourcesConfig(train=(str(tmp_path / "in.jsonl"),)),
        tokenizer=TokenizerConfig(vocab_size=300),
    )


def texts(folder: str, name: str = "source_text") -> list[str | None]:
    dataset = ShardDataset(Path(folder) / "train")
    return [dataset.read(number).meta.get(name) for number in range(len(dataset))]


def test_prepare_counts_every_filter(config):
    clean = CleanConfig(quality=True, max_target_source_ratio=0.9, max_source_characters=2500)
    report = prepare(replace(config, clean=clean))
    expected = {"exact_duplicate": 1, "quality_few_letters": 1, "target_source_ratio": 1}
    assert report["splits"]["train"]["dropped"] == expected
    card = (Path(config.output) / "README.md").read_text()
    assert "| quality_few_letters | 1 |" in card


def test_equal_documents_may_stay(config):
    report = prepare(replace(config, clean=CleanConfig(exact_duplicates=False)))
    assert (report["splits"]["train"]["documents"], report["splits"]["train"]["dropped"]) == (5, {})


def test_limits_in_tokens_drop_and_count(config):
    config = replace(config, clean=CleanConfig(exact_duplicates=False))
    tokenizer = load_tokenizer(train(config))
    lengths = [len(tokenizer.encode(text)) for text in texts(config.output, "target_text") if text]
    limits = {"min_target_tokens": min(lengths) + 1, "max_target_tokens": max(lengths) - 1}
    report = prepare(replace(config, output=config.output + "2", **limits))
    assert report["splits"]["train"]["dropped"]["target_too_short"] == lengths.count(min(lengths))
    assert report["splits"]["train"]["dropped"]["target_too_long"] == lengths.count(max(lengths))
    assert report["splits"]["train"]["documents"] > 0


def train(config: PrepareConfig) -> Path:
    """Prepare, and where its tokenizer lies."""
    prepare(config)
    return Path(config.output) / "tokenizer"


def test_the_text_is_kept_if_asked_for_as_it_was_tokenized(config):
    prepare(config)
    assert texts(config.output) == [None] * 4
    kept = replace(config, output=config.output + "2", keep_source_text=True)
    tokenizer = load_tokenizer(train(kept))
    assert texts(kept.output)[0] == PROSE + " caf\u00e9"
    dataset = ShardDataset(Path(kept.output) / "train")
    for number, text in enumerate(texts(kept.output)):
        assert tokenizer.decode(dataset.read(number).source) == text


def test_the_card_names_the_licence(config):
    prepare(config)
    card = (Path(config.output) / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n")
    licensed = replace(config, output=config.output + "2", license="cc-by-4.0")
    prepare(licensed)
    card = (Path(licensed.output) / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "Licence: cc-by-4.0." in card
    assert read_json(Path(licensed.output) / "report.json")["settings"]["license"] == "cc-by-4.0"


def test_a_unigram_tokenizer_is_trained_and_used(config):
    settings = TokenizerConfig(vocab_size=200, algorithm="unigram")
    tokenizer = load_tokenizer(train(replace(config, tokenizer=settings, keep_source_text=True)))
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"] == "Unigram"
    source = ShardDataset(Path(config.output) / "train").read(0).source
    assert tokenizer.decode(source) == texts(config.output)[0]

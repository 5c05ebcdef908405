"""Tokenizers: lossless, deterministic, with the special tokens at their ids and never made from text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import (
    SPECIAL_TOKENS,
    SpecialIds,
    fingerprint,
    load_tokenizer,
    special_ids,
    train_tokenizer,
)

TEXTS = ["def f(x):\n    return x + 1\n", "The quick brown fox, again and again. " * 5, "été 漢字 \u200b"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter(TEXTS), 400)


@given(st.text(), st.sampled_from(["", " ", "<mask>", "</s>", " ,"]))
@settings(max_examples=100, deadline=None)
def test_decoding_gives_the_text_back(tokenizer, text, extra):
    ids = tokenizer(text + extra + text).input_ids
    assert tokenizer.decode(ids) == text + extra + text
    assert all(i >= len(SPECIAL_TOKENS) for i in ids)


def test_special_ids_are_fixed_and_training_is_deterministic(tokenizer):
    assert special_ids(tokenizer) == SpecialIds(bos=0, pad=1, eos=2, unk=3, mask=4, gap=5)
    assert fingerprint(train_tokenizer(iter(TEXTS), 400)) == fingerprint(tokenizer)
    assert fingerprint(train_tokenizer(iter(TEXTS[:2]), 400)) != fingerprint(tokenizer)


def test_saving_and_padding_keep_the_fingerprint(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    before = fingerprint(loaded)
    loaded(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert fingerprint(loaded) == before == fingerprint(tokenizer)
    assert loaded("x </s>").input_ids == tokenizer("x </s>").input_ids


def test_a_foreign_tokenizer_gets_what_it_lacks(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    ids = special_ids(load_tokenizer(tmp_path / "tokenizer.json"))
    assert len({ids.bos, ids.pad, ids.eos, ids.mask, ids.gap}) == 5
    assert min(ids.bos, ids.pad, ids.eos, ids.mask, ids.gap) >= 3


def test_a_tokenizer_of_an_older_release_is_read_by_its_class(tokenizer, tmp_path):
    """A BART's vocab.json and merges.txt, without tokenizer.json."""
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BartTokenizer"}')
    tokenizer.backend_tokenizer.model.save(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    text = "The quick brown fox"
    assert loaded(text, add_special_tokens=False).input_ids == tokenizer(text).input_ids
    (tmp_path / "merges.txt").write_text("nonsense")
    with pytest.raises(UserError, match="its tokenizer files cannot be read"):
        load_tokenizer(tmp_path)


def test_no_tokenizer_or_a_broken_one(tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        load_tokenizer(tmp_path)


def test_unigram_reads_back():
    texts = [f"the model reads {i} documents and keeps few of the tokens." for i in range(200)]
    first = train_tokenizer(iter(texts), 120, "unigram")
    assert special_ids(first) == SpecialIds(bos=0, pad=1, eos=2, unk=3, mask=4, gap=5)
    assert first.decode(first(texts[7]).input_ids) == texts[7]

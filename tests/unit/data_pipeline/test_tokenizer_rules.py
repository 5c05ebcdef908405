"""What a tokenizer carries with it: the cleaning of texts, special tokens as letters, ids without holes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from transpooler.common import UserError
from transpooler.data_pipeline.config import UNICODE_FORMS, CleanConfig
from transpooler.data_pipeline.prepare.clean import clean_text
from transpooler.data_pipeline.tokenizer import fingerprint, load_tokenizer, special_ids, train_tokenizer
from transpooler.data_pipeline.tokenizer_rules import bind_cleaning, without_cleaning

TEXTS = [f"the model reads {i} documents, s/b <b>keeps</b> few > pad mask of the tokens." for i in range(60)]
NASTY = "a\r\nb\rc\x00d e\x00\u0301 \ufb01 \u212b \x9b\ufeff\x0c."


@pytest.mark.parametrize("form", [None, *UNICODE_FORMS])
@pytest.mark.parametrize("controls", [True, False])
def test_the_tokenizer_cleans_as_prepare_does(form: str | None, controls: bool) -> None:
    tokenizer = train_tokenizer(iter(TEXTS), 300)
    before, plain = fingerprint(tokenizer), Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    bind_cleaning(tokenizer, "NFKC", True)  # takes the place of what was bound before
    bind_cleaning(tokenizer, form, controls)
    config = CleanConfig(unicode_form=form, control_characters=controls)

    @given(
        st.lists(st.sampled_from([*NASTY, "\r\n", "e\u0301", "\u1100\u1161", "</s>"]) | st.text(max_size=3)).map(
            "".join
        )
    )
    @settings(max_examples=40, deadline=None)
    def check(text: str) -> None:
        clean = clean_text(text, config)
        assert clean_text(clean, config) == clean
        assert tokenizer(text).input_ids == plain.encode(clean).ids

    check()
    assert tokenizer(NASTY).input_ids == plain.encode(clean_text(NASTY, config)).ids
    assert fingerprint(tokenizer) == before  # ids mean what they meant
    assert without_cleaning(tokenizer.backend_tokenizer) is None


def test_every_user_of_transformers_gets_the_rules(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(iter(TEXTS), 120, "unigram")
    bind_cleaning(tokenizer, "NFC", True)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(f"{NASTY} </s> <mask>").input_ids
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded(f"{NASTY} </s> <mask>").input_ids == ids
    bound = json.loads((tmp_path / "tokenizer.json").read_text())["normalizer"]["normalizers"]
    assert [step["type"] for step in bound] == ["Replace", "Replace", "NFC", "NFKC", "Replace"]


def foreign(kind: str) -> Tokenizer:
    """A tokenizer that has its special tokens among the pieces of its model."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<", ">", "/", "s", "pad", "mask", "▁", "a", "/s>", "s>"]
    backend: Any
    if kind == "t5":
        backend = Tokenizer(models.Unigram([(word, -0.1 * i) for i, word in enumerate(words)], unk_id=3))
        backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    elif kind == "words":
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "wordpiece":
        vocab = {word: i for i, word in enumerate([*words, *(f"##{word}" for word in words)])}
        backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:  # merges that end in a special token, and no pre-tokenizer
        merges = [("<", "s"), ("<s", ">")] if kind == "merges" else []
        vocab = {word: i for i, word in enumerate([*words, "<s"])}
        backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", ignore_merges=kind == "whole_words"))
    backend.add_special_tokens(words[:5])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return backend


@pytest.mark.parametrize("kind", ["bpe", "unigram", "t5", "words", "wordpiece", "merges", "whole_words"])
def test_special_tokens_in_a_text_are_letters(tmp_path: Path, kind: str) -> None:
    if kind in ("bpe", "unigram"):
        tokenizer = train_tokenizer(iter(TEXTS), 300 if kind == "bpe" else 120, kind)
    else:
        foreign(kind).save(str(tmp_path / "tokenizer.json"))
        tokenizer = load_tokenizer(tmp_path)
        names = ("bos", "pad", "eos", "unk", "mask")
        tokenizer.add_special_tokens(
            {
                f"{name}_token": token
                for name, token in zip(names, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), strict=True)
            }
        )
    special = special_ids(tokenizer)
    for text in ("<s>", "a <s>a</s>", "</s> <pad><mask>", "<<s>s>", "<mask"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert not {special.bos, special.pad, special.eos, special.mask, special.gap} & {*ids}, (
            text,
            tokenizer.convert_ids_to_tokens(ids),
        )
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>"]) == [special.bos, special.pad, special.eos]
    if kind in ("bpe", "unigram"):
        assert tokenizer.decode(tokenizer("s <s>mask</s> <mask>.").input_ids) == "s <s>mask</s> <mask>."


@pytest.mark.parametrize("with_config", [False, True])
def test_added_tokens_come_after_all_ids_of_a_trimmed_vocabulary(tmp_path: Path, with_config: bool) -> None:
    state = json.loads(train_tokenizer(iter(TEXTS), 320).backend_tokenizer.to_str())
    vocab, state["added_tokens"] = state["model"]["vocab"], []
    kept = {token: i for token, i in vocab.items() if 6 <= i < 262 or i % 7 == 0}
    state["model"]["vocab"] = kept
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if {*pair, "".join(pair)} <= kept.keys()]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    if with_config:
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "<end>",
            "pad_token": "<pad>",
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    special = special_ids(tokenizer)
    assert special.bos == 0  # the one that the vocabulary has kept
    assert min(special.pad, special.eos, special.mask, special.gap) > max(kept.values())
    assert len({special.pad, special.eos, special.mask, special.gap}) == 4
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1
    assert tokenizer.decode(tokenizer(TEXTS[3]).input_ids) == TEXTS[3]
    tokenizer.save_pretrained(tmp_path / "again")
    assert fingerprint(load_tokenizer(tmp_path / "again")) == fingerprint(tokenizer)


def test_ids_that_are_absurdly_high_are_refused(tmp_path: Path) -> None:
    state = json.loads(Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).to_str())
    state["model"]["vocab"]["?"] = 20_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="number them anew"):
        load_tokenizer(tmp_path)


def test_the_library_s_own_errors_are_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"prepare.tokenizer.vocab_size: is 20, too few .*algorithm=bpe"):
        train_tokenizer(iter([chr(i) for i in range(0x4E00, 0x4F00)]), 20, "unigram")

    def lost() -> Any:
        yield "a"
        raise UserError("of the texts")

    with pytest.raises(UserError, match="of the texts"):
        train_tokenizer(lost(), 300)

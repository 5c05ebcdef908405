"""Sentences are found whatever the tokenizer makes of a text."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from transpooler.data_pipeline.objectives.sentences import SentenceEnds, count_forced_cuts
from transpooler.data_pipeline.text_tokens import token_bytes
from transpooler.data_pipeline.tokenizer import train_tokenizer

PROSE = 'The first one is here. He said "stop here now!" and left. Is 3.5 a number?\nYes it is, of course.'
CHINESE = "我们今天去学校。他说：“你好吗？”然后走了！完"


def make(kind: str) -> Any:
    if kind in ("bpe", "unigram"):
        return train_tokenizer(iter([PROSE, CHINESE, PROSE.lower()]), 270 if kind == "bpe" else 100, kind)
    letters = sorted({*PROSE, *CHINESE} - {" ", "\n"})
    backend: Any
    if kind == "wordpiece":
        vocab = {token: i for i, token in enumerate(["[UNK]", *letters, *(f"##{letter}" for letter in letters)])}
        backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    else:  # as in Llama 2: a newline, and whatever is not in the vocabulary, is spelt in bytes
        vocab = {
            token: i for i, token in enumerate(["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefgh."])
        }
        backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "bytes"])
def test_sentences_end_where_they_end_in_the_text(kind: str) -> None:
    tokenizer = make(kind)
    ends = SentenceEnds(token_bytes(tokenizer))

    def sentences(text: str) -> list[str]:
        ids = np.array(tokenizer(text, add_special_tokens=False).input_ids)
        parts = np.split(ids, ends.find(ids))
        return ["".join(tokenizer.decode(part).split()) for part in parts]

    expected = ["Thefirstoneishere.", 'Hesaid"stopherenow!"', "andleft.", "Is3.5anumber?", "Yesitis,ofcourse."]
    if kind == "unigram":  # its normalizer makes spaces of newlines
        expected[0] = sentences(PROSE)[0]
    if kind == "wordpiece":  # which cuts numbers at the point, and does not say where a quote belongs
        expected[1:4] = ['Hesaid"stopherenow!', '"andleft.', "Is3.", "5anumber?"]
    assert sentences(PROSE) == expected
    if kind != "unigram":
        quote = ["他说：“你好吗？", "”然后走了！"] if kind == "wordpiece" else ["他说：“你好吗？”", "然后走了！"]
        assert sentences(CHINESE) == ["我们今天去学校。", *quote, "完"]


@pytest.mark.parametrize(
    "decoder",
    [None, decoders.Fuse(), decoders.ByteFallback(), decoders.WordPiece()],
    ids=["none", "fuse", "bytes", "words"],
)
def test_bytes_that_a_model_falls_back_to_are_what_they_spell(decoder: Any) -> None:
    tokenizer = make("bytes")
    tokenizer.backend_tokenizer.decoder = decoder
    ids = np.array(tokenizer("abc.\tde. fg\nh", add_special_tokens=False).input_ids)
    spelt = token_bytes(tokenizer)
    assert b"".join(spelt[i] for i in ids) == b" abc.\tde. fg\nh"
    assert [len(part) for part in np.split(ids, SentenceEnds(spelt).find(ids))] == [5, 4, 4, 1]


def test_text_that_looks_like_a_byte_stays_text_where_nothing_falls_back() -> None:
    tokenizer = make("unigram")
    tokenizer.add_tokens(["<0x0A>"])
    assert token_bytes(tokenizer)[-1] == b"<0x0A>"


@pytest.mark.parametrize("byte_level", [False, True])
def test_words_that_their_end_marks(byte_level: bool) -> None:
    """As in CLIP and in the first GPT."""
    vocab = {token: i for i, token in enumerate([*"abcdefgh.", *(f"{letter}</w>" for letter in "abcdefgh.")])}
    backend: Any = Tokenizer(models.BPE(vocab, [], end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if byte_level:
        steps: list[Any] = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.BPEDecoder()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = np.array(tokenizer("abc. def. gh", add_special_tokens=False).input_ids)
    ends = SentenceEnds(token_bytes(tokenizer)).find(ids)
    assert ["".join(tokenizer.decode(part).split()) for part in np.split(ids, ends)] == ["abc.", "def.", "gh"]


def test_cuts_that_are_no_ends_are_counted() -> None:
    tokenizer = make("bpe")
    ends = SentenceEnds(token_bytes(tokenizer))
    for text, cuts in (("word " * 400, True), (PROSE * 5, False)):
        ids = np.array(tokenizer(text).input_ids)
        found, total = count_forced_cuts(ids, ends)
        assert (found == total - 1 > 2) if cuts else (found == 0 < total)

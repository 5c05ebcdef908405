"""The first ids of a text are those of the whole text, whatever the tokenizer; no more is read than they need."""

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from transpooler.data_pipeline.text_tokens import leading_tokens
from transpooler.data_pipeline.tokenizer import load_tokenizer, train_tokenizer

MANY_WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
PIECES = (
    *("the", "model", "reads", "don't", "they'll", "state-of-the-art", "1234567", "3.14159", "x+=y", "</s>", "<mask>"),
    *(
        "naïve",
        "e\u0301te\u0301",
        "ﬁne",
        "漢字かな",
        "😀",
        "\u200b",
        "Σίσυφος",
        *[MANY_WORDS] * 6,
        "ab" * 40,
    ),
    *("0" * 200, "...", "''", "'", "'l", "\x0c", "\ufeff"),
)
SPACES = (" ", " ", " ", " ", "\n", "\n\n", "\r\n", "\t", "    ", "\u00a0", "\u3000", "", " " * 50, "  \n  ")
TOKENIZERS = ("bpe", "unigram", "wordpiece", "whole_text", "digits_from_the_right", "line_ends", "added_tokens")
FOREIGN = os.environ.get("TRANSPOOLER_TEST_TOKENIZER", "")
"""A tokenizer that was not made here, such as GPT-2's."""


def text_of(seed: int, num_pieces: int = 300) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(PIECES) + draw.choice(SPACES) for _ in range(num_pieces))


def head_of(text: str) -> Callable[[int], str]:
    return lambda num_characters: text[:num_characters]


def split_by(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def make(kind: str) -> Any:
    texts = [text_of(seed) for seed in range(100, 110)]
    if kind in ("bpe", "unigram"):
        return train_tokenizer(iter(texts), 400, kind)
    if kind == "added_tokens":
        tokenizer = train_tokenizer(iter(texts), 400)
        tokenizer.add_tokens([AddedToken(MANY_WORDS, normalized=False), AddedToken(" " * 20)])
        return tokenizer
    if kind == "wordpiece":
        backend: Any = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
        if kind == "whole_text":  # as in Llama 2: nothing splits the text into words
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        elif kind == "digits_from_the_right":
            backend.pre_tokenizer = split_by(r"\d{1,3}(?=(?:\d{3})*(?:\D|$))|\s+(?!\S)| ?[^\s\d]+")
        else:
            backend.pre_tokenizer = split_by(r"(?i:'s|'t|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+")
    backend.train_from_iterator([text[:300] for text in texts] if kind == "whole_text" else texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def whole_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("kind", [*TOKENIZERS, "foreign"])
def test_they_are_those_of_the_whole_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "foreign" and not FOREIGN:
        pytest.skip("TRANSPOOLER_TEST_TOKENIZER names none")
    # So little is looked at first that the cut falls anywhere, and often more must be read.
    monkeypatch.setattr("transpooler.data_pipeline.text_tokens._CHARACTERS_A_TOKEN", 3)
    tokenizer = load_tokenizer(FOREIGN) if kind == "foreign" else make(kind)
    for seed in range(2):
        text = text_of(seed)
        ids = whole_ids(tokenizer, text)
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert len(ids) > 400
        for limit in (*range(400), len(ids) - 1, len(ids), len(ids) + 1):
            found = leading_tokens(tokenizer, head_of(text), limit)
            assert (found.ids, found.whole) == (ids[:limit], limit >= len(ids)), (seed, limit)
            assert found.offsets == offsets[:limit]


def test_texts_without_white_space_or_words() -> None:
    tokenizer = make("bpe")
    for text in ("", " ", "\n" * 5000, "ab" * 4000, " " * 4000 + "the end", "the end" + " " * 4000, "word " * 900):
        ids = whole_ids(tokenizer, text)
        for limit in (0, 1, 7, 300):
            found = leading_tokens(tokenizer, head_of(text), limit)
            assert (found.ids, found.whole) == (ids[:limit], limit >= len(ids)), (text[:9], limit)


def test_no_more_is_read_than_is_needed() -> None:
    tokenizer = make("bpe")
    text = "the model reads 3.14159 documents. " * 10_000
    asked: list[int] = []

    def head(num_characters: int) -> str:
        asked.append(num_characters)
        return text[: num_characters * 50]  # more than was asked for is not looked at

    found = leading_tokens(tokenizer, head, 100)
    assert (found.ids, found.whole) == (whole_ids(tokenizer, text)[:100], False)
    assert max(asked) < 3000

"""Objectives: nothing is lost or invented, and the settings mean what they say."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.objectives import OBJECTIVES
from transpooler.data_pipeline.objectives.sentences import SentenceEnds, permute_sentences, split_units
from transpooler.data_pipeline.tokenizer import SpecialIds

SPECIAL = SpecialIds(0, 1, 2, 3, 4, 5)
NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<gap>", ".", "\n", " (", *[f" w{i}" for i in range(191)]]
TOKENS = [name.encode() for name in NAMES]


def refill(corrupted: np.ndarray, blank: int, spans: list[list[int]]) -> list[int]:
    fill = iter(spans)
    return [token for item in corrupted.tolist() for token in (next(fill) if item == blank else [item])]


def make_pair(objective: str, source: np.ndarray, seed: int, limit: int, **values) -> tuple[np.ndarray, np.ndarray]:
    """The pair that an objective makes; its target has `limit` tokens at most."""
    config = DataConfig(max_target_tokens=limit + 1, **values)  # with </s>
    vocabulary: Any = SimpleNamespace(special=SPECIAL, sentence_ends=SentenceEnds(TOKENS))
    return OBJECTIVES[objective].make_pair(source, None, config, vocabulary, np.random.default_rng(seed))


def infill(source, seed=0, limit=10**6, fraction=0.3, mean=3.0):
    return make_pair("denoise", source, seed, limit, mask_fraction=fraction, mean_span_tokens=mean)


def test_bart_masks_the_fraction_in_poisson_spans_and_wants_the_document_back():
    source = np.arange(6, 8006)
    corrupted, target = infill(source)
    assert target.tolist() == source.tolist()
    kept = corrupted[corrupted != SPECIAL.mask]
    assert len(source) - len(kept) == 2400
    assert (np.diff(kept) > 0).all()
    assert 2400 / (corrupted == SPECIAL.mask).sum() == pytest.approx(3.0, rel=0.1)


@given(st.integers(2, 400), st.integers(1, 60), st.floats(0.01, 0.99), st.floats(1, 8), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_spans_of_long_documents_fit_and_refill_the_source(length, limit, fraction, mean, seed):
    source = np.arange(6, 6 + length)
    corrupted, target = infill(source, seed, limit, fraction, mean)
    if length <= limit:
        assert target.tolist() == source.tolist()
        return
    assert len(target) <= max(limit, 2)
    spans = [[int(token) for token in part] for part in np.split(target, np.flatnonzero(target == SPECIAL.mask))[1:]]
    assert refill(corrupted, SPECIAL.mask, [span[1:] for span in spans]) == source.tolist()


@pytest.mark.parametrize("fraction", [0.75, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("mean", [1, 3, 10])
def test_a_mask_fraction_near_one_masks_what_is_asked(fraction, mean):
    source = np.arange(6, 8006)
    corrupted, _ = infill(source, fraction=fraction, mean=mean)
    kept = corrupted[corrupted != SPECIAL.mask]
    assert len(kept) == len(source) - round(fraction * len(source))
    assert (np.diff(kept) > 0).all()


def test_spans_of_long_documents_cover_all_of_it():
    _, target = infill(np.arange(6, 8006), limit=256)
    assert 200 < len(target) <= 256
    tenths = (target[target != SPECIAL.mask] - 6) // 800
    assert set(tenths.tolist()) == set(range(10))


@given(st.lists(st.integers(6, 199), min_size=2, max_size=600), st.integers(1, 200), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_gap_sentences_are_cut_out_and_wanted_in_order(tokens, limit, seed):
    source, ends = np.array(tokens), SentenceEnds(TOKENS)
    units = split_units(source, ends)
    assert [start for start, _ in units] == [0, *[stop for _, stop in units[:-1]]]
    assert units[-1][1] == len(source)
    corrupted, target = make_pair("gap_sentences", source, seed, limit, gap_fraction=0.2)
    num_gaps = int((corrupted == SPECIAL.gap).sum())
    assert 1 <= num_gaps <= max(1, round(0.2 * len(units)))
    assert 1 <= len(target) <= limit
    if num_gaps > 1 or len(target) < limit:  # else the one sentence taken may have been cut
        assert len(corrupted) - num_gaps + len(target) == len(source)


def test_sentences_end_at_newlines_and_at_full_stops_before_a_space():
    word, dot, newline, glued = 20, 6, 7, 8
    source = np.array([word] * 7 + [dot] + [word] * 7 + [newline] + [9] * 8)
    assert SentenceEnds(TOKENS).find(source).tolist() == [8, 16]
    tokens = [*TOKENS[:8], b"x", *TOKENS[9:]]
    assert SentenceEnds(tokens).find(np.array([word, dot, glued, word])).tolist() == []


def test_the_sentence_most_like_the_rest_is_taken():
    unlike, like = list(range(50, 58)), list(range(60, 68))
    source = np.array(
        [*unlike, 7, *like, 7, *range(100, 108), 7, *like[:4], *range(120, 124), 7, *like[4:], *range(130, 134)]
    )
    _, target = make_pair("gap_sentences", source, 0, 50, gap_fraction=0.2)
    assert target.tolist() == [*like, 7]


def joined(sentences: list[list[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def gaps(source: np.ndarray, seed: int = 0, **values) -> tuple[list[int], list[int]]:
    corrupted, target = make_pair(
        "gap_sentences", source, seed, 500, **{"gap_fraction": 0.4, "gap_noise": 0.0} | values
    )
    return corrupted.tolist(), target.tolist()


def rouge_1(chosen: list[int], rest: list[int], unique: bool) -> float:
    """Slow and obvious: F1 of two bags (or sets) of ids."""
    left, right = ((Counter(set(ids)) if unique else Counter(ids)) for ids in (chosen, rest))
    return 2 * sum((left & right).values()) / (sum(left.values()) + sum(right.values()))


@pytest.mark.parametrize("selection", ["ind_orig", "ind_uniq", "seq_orig", "seq_uniq"])
@pytest.mark.parametrize("seed", range(8))
def test_principal_sentences_are_those_of_the_paper(selection, seed):
    draw = np.random.default_rng(seed)
    sentences = [[*draw.integers(10, 40, int(draw.integers(7, 14))).tolist(), 7] for _ in range(9)]
    unique = selection.endswith("uniq")

    def score(chosen: list[int]) -> float:
        inside = [token for i in chosen for token in sentences[i]]
        outside = [token for i in range(9) if i not in chosen for token in sentences[i]]
        return rouge_1(inside, outside, unique)

    if selection.startswith("ind"):
        wanted = sorted(range(9), key=lambda i: -score([i]))[:4]
    else:
        wanted = []
        for _ in range(4):
            wanted.append(max((i for i in range(9) if i not in wanted), key=lambda i: score([*wanted, i])))
    _, target = gaps(np.array(joined(sentences)), gap_selection=selection)
    assert target == [token for i in sorted(wanted) for token in sentences[i]]


def test_lead_random_and_kept_sentences():
    sentences = [[*range(10 * i, 10 * i + 7), 7] for i in range(1, 11)]
    source = np.array(joined(sentences))
    corrupted, target = gaps(source, gap_selection="lead")
    assert target == joined(sentences[:4])
    assert corrupted == [SPECIAL.gap] * 4 + joined(sentences[4:])
    assert len({tuple(gaps(source, seed, gap_selection="random")[1]) for seed in range(20)}) > 10
    corrupted, target = gaps(source, gap_selection="lead", gap_kept_fraction=0.5)
    assert target == joined(sentences[:4])
    assert corrupted.count(SPECIAL.gap) == 2
    assert len(corrupted) == len(source) - 16 + 2


def test_spans_of_no_length_insert_masks():
    """BART: a span of length 0 is a <mask> between two tokens that both stay."""
    corrupted, _ = infill(np.arange(6, 2006))
    number, mask = 0, SPECIAL.mask
    for left, middle, right in zip(corrupted, corrupted[1:], corrupted[2:], strict=False):
        number += middle == mask and right == left + 1
    share = number / (corrupted == mask).sum()
    assert share == pytest.approx(np.exp(-3), abs=0.03)


def test_sentences_are_permuted_whole():
    sentences = [[*range(10 * i, 10 * i + 7), 7] for i in range(1, 11)]
    source = np.array(joined(sentences))
    permuted = permute_sentences(source, SentenceEnds(TOKENS), np.random.default_rng(0)).tolist()
    parts = [permuted[i : i + 8] for i in range(0, 80, 8)]
    assert sorted(parts) == sorted(sentences)
    assert parts != sentences

"""Objectives: nothing is lost or invented, and the settings mean what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.gap_sentences import gap_sentences
from data_pipeline.objectives import text_infilling
from data_pipeline.sentences import SentenceEnds, split_units
from data_pipeline.tokenizer import SpecialIds

SPECIAL = SpecialIds(0, 1, 2, 3, 4, 5)
TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<gap>", ".", "Ċ", "Ġ(", *[f"Ġw{i}" for i in range(191)]]


def refill(corrupted: np.ndarray, blank: int, spans: list[list[int]]) -> list[int]:
    fill = iter(spans)
    return [token for item in corrupted.tolist() for token in (next(fill) if item == blank else [item])]


def infill(source, seed=0, limit=10**6, fraction=0.3, mean=3.0):
    rng = np.random.default_rng(seed)
    return text_infilling(source, SPECIAL, rng, mask_fraction=fraction, mean_span_tokens=mean, max_target_tokens=limit)


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
    corrupted, target = gap_sentences(
        source, SPECIAL, np.random.default_rng(seed), boundaries=ends, gap_fraction=0.2, max_target_tokens=limit
    )
    num_gaps = int((corrupted == SPECIAL.gap).sum())
    assert 1 <= num_gaps <= max(1, round(0.2 * len(units)))
    assert 1 <= len(target) <= limit
    if num_gaps > 1 or len(target) < limit:  # else the one sentence taken may have been cut
        assert len(corrupted) - num_gaps + len(target) == len(source)


def test_sentences_end_at_newlines_and_at_full_stops_before_a_space():
    word, dot, newline, glued = 20, 6, 7, 8
    source = np.array([word] * 7 + [dot] + [word] * 7 + [newline] + [9] * 8)
    assert SentenceEnds(TOKENS).after(source).tolist() == [8, 16]
    tokens = [*TOKENS[:8], "x", *TOKENS[9:]]
    assert SentenceEnds(tokens).after(np.array([word, dot, glued, word])).tolist() == []


def test_the_sentence_most_like_the_rest_is_taken():
    unlike, like = list(range(50, 58)), list(range(60, 68))
    source = np.array(
        [*unlike, 7, *like, 7, *range(100, 108), 7, *like[:4], *range(120, 124), 7, *like[4:], *range(130, 134)]
    )
    _, target = gap_sentences(
        source,
        SPECIAL,
        np.random.default_rng(0),
        boundaries=SentenceEnds(TOKENS),
        gap_fraction=0.2,
        max_target_tokens=50,
    )
    assert target.tolist() == [*like, 7]

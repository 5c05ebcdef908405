"""ROUGE against hand-counted values, lead-n, bootstrap intervals."""

import numpy as np
import pytest

from transpooler.trainer.evaluation.rouge import bootstrap, count_words, lead, rouge


def test_rouge_by_hand() -> None:
    # 4 reference words, 3 generated, 2 unigrams in common (cat, sat; stems agree), 1 bigram.
    scores = rouge("the cat sat down", "cats sat here")
    assert scores["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rougeL"] == scores["rouge1"]


def test_lsum_compares_sentence_by_sentence() -> None:
    # The longest common subsequence of the whole texts is one sentence; sentence by sentence, all words are found.
    scores = rouge("alpha beta gamma. delta epsilon zeta.", "delta epsilon zeta. alpha beta gamma.")
    assert scores["rougeL"] == pytest.approx(0.5)
    assert scores["rougeLsum"] == pytest.approx(1.0)


def test_rouge_of_nothing_is_zero() -> None:
    assert set(rouge("some words", "").values()) == {0.0}


def test_lead_takes_words() -> None:
    assert lead("  one two\n\nthree  four", 3) == "one two three"
    assert lead("one", 3) == "one"
    assert count_words(lead("a b c d e f", 4)) == 4


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, 400).tolist()
    interval = bootstrap(values, seed=1)
    assert interval == bootstrap(values, seed=1)
    assert interval.mean == pytest.approx(np.mean(values))
    # Normal theory: mean +- 1.96 sd / sqrt(n).
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.std(values) / 20, rel=0.1)
    single = bootstrap([0.5], seed=0)
    assert (single.low, single.high) == (0.5, 0.5)

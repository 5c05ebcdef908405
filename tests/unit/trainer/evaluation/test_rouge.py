"""ROUGE against hand-counted values, lead-n, bootstrap intervals."""

import numpy as np
import pytest

from transpooler.trainer.evaluation.rouge import bootstrap, count_words, dialect_of, lead, rouge

DIALECTS = pytest.mark.parametrize("dialect", ["rouge-score", "rouge-1.5.5"])


def f1(hits: int, reference: int, summary: int) -> float:
    return 2 * hits / (reference + summary)


@DIALECTS
def test_rouge_by_hand(dialect: str) -> None:
    # 4 reference words, 3 generated, 2 unigrams in common (cat, sat; stems agree), 1 of 3 and 2 bigrams.
    scores = rouge("the cat sat down", "Cats sat, here!", dialect)
    assert scores["rouge1"] == pytest.approx(f1(2, 4, 3))
    assert scores["rouge2"] == pytest.approx(f1(1, 3, 2))
    assert scores["rougeL"] == scores["rougeLsum"] == scores["rouge1"]


def test_the_l_of_rouge_score_compares_whole_texts_and_that_of_the_script_sentences() -> None:
    # The longest common subsequence of the whole texts is one sentence; sentence by sentence, all words are found.
    texts = "alpha beta gamma. delta epsilon zeta.", "delta epsilon zeta. alpha beta gamma."
    package, script = (rouge(*texts, dialect) for dialect in ("rouge-score", "rouge-1.5.5"))
    assert package["rougeL"] == pytest.approx(0.5)
    assert script["rougeL"] == script["rougeLsum"] == package["rougeLsum"] == pytest.approx(1.0)
    assert script["rouge2"] == package["rouge2"] == pytest.approx(f1(4, 5, 5))  # bigrams cross sentences in both


@DIALECTS
def test_the_union_of_subsequences_of_lins_example(dialect: str) -> None:
    """Section 3.2 of the paper: w1 w2 from one sentence and w1 w3 w5 from the other make 4 of the reference's 5."""
    scores = rouge("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", dialect)
    assert scores["rougeLsum"] == pytest.approx(f1(4, 5, 10))
    # As one text, w1 w2 w3 w5.
    assert scores["rougeL"] == pytest.approx(f1(4, 5, 10))


@DIALECTS
def test_a_word_counts_no_more_often_than_it_stands_there(dialect: str) -> None:
    # Each of the two reference sentences finds `a`, of which the summary has one.
    assert rouge("a b. a c.", "a d.", dialect)["rougeLsum"] == pytest.approx(f1(1, 4, 2))


@pytest.mark.parametrize(
    ("reference", "summary", "package", "script"),
    [
        ("he is dying", "he will die", f1(2, 3, 3), f1(1, 3, 3)),  # NLTK knows dying: die; Porter's rules make dy of it
        ("the skies cleared", "the sky cleared", f1(3, 3, 3), f1(2, 3, 3)),
        ("he enjoys it", "he enjoyed it", f1(3, 3, 3), f1(3, 3, 3)),
        ("costs of 3-day stays", "cost of 3 day stay", f1(5, 5, 5), f1(5, 5, 5)),
        ("the na\u00efve one", "the na ve one", f1(4, 4, 4), f1(4, 4, 4)),  # what is not ASCII parts words in both
        ("to be or not", "to be", f1(2, 4, 2), f1(2, 4, 2)),  # no word is left out
        ("\u212a", "k", f1(1, 1, 1), 0.0),  # the sign of the kelvin, whose small letter is ASCII
    ],
)
def test_where_the_stems_of_the_dialects_differ(reference: str, summary: str, package: float, script: float) -> None:
    assert rouge(reference, summary, "rouge-score")["rouge1"] == pytest.approx(package)
    assert rouge(reference, summary, "rouge-1.5.5")["rouge1"] == pytest.approx(script)


@DIALECTS
def test_rouge_of_nothing_is_zero(dialect: str) -> None:
    assert set(rouge("some words", "", dialect).values()) == {0.0}


def test_an_evaluation_without_a_note_is_of_the_first_dialect() -> None:
    assert dialect_of({"rouge_dialect": "rouge-1.5.5"}) == "rouge-1.5.5"
    assert dialect_of({}) == "rouge-score"


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

"""What share of a sentence's content words stands within its sources, by chance, and anywhere: counted by hand."""

from fractions import Fraction

import numpy as np
import pytest

from transpooler.benchmarks.quality.source_words import Shares, score

SPANS = [(0, 10), (10, 20), (20, 21)]
PASSAGES = [{b"alpha", b"gamma"}, {b"delta"}, set()]


def test_words_are_counted_in_the_passages_that_are_cited() -> None:
    cited = [
        ("Alpha and delta: epsilon, 1999.", [(0, 10)]),  # 1 of 4 words; 2 of 4 anywhere
        ("it is so", [(0, 10)]),  # no content words
        ("Gamma delta.", []),  # no sources
        ("Gamma delta.", [(20, 21), (0, 10), (10, 20)]),  # all passages: chance is the same
    ]
    first, second, third = score(cited, SPANS, PASSAGES, np.random.default_rng(0))
    assert (first.sources, first.read) == (1 / 4, 2 / 4)
    assert second == Shares(0, 0, 1)
    assert third == Shares(1, 1, 1)


def test_chance_takes_long_passages_more_often() -> None:
    cited = [("alpha", [(20, 21)])] * 500
    shares = list(score(cited, [(0, 30), (30, 39), (20, 21)], PASSAGES, np.random.default_rng(0)))
    expected = Fraction(30, 40)
    assert np.mean([share.chance for share in shares]) == pytest.approx(float(expected), abs=0.02)
    assert {share.sources for share in shares} == {0}

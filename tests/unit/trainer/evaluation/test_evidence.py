"""Evidence recall by hand: words over several tokens, capitals, numbers, words that the source lacks."""

import numpy as np
import pytest

from transpooler.trainer.evaluation.evidence import evidence_recall

TOKENS = [
    *(b" Mam", b"mals", b" breathe", b".", b" the", b" 17", b"mammals", b" about", b" oxygen", b" \xc3\xa9", b"tudes")
]
MAM, MALS, BREATHE, DOT, THE, N17, MAMMALS, ABOUT, OXYGEN, E, TUDES = range(len(TOKENS))
SOURCE = [MAM, MALS, BREATHE, DOT, MAMMALS, THE, N17, ABOUT, E, TUDES]


def recall(weights: list[float], summary: list[int]) -> float | None:
    return evidence_recall(SOURCE, np.array(weights), summary, TOKENS)


def test_a_word_weighs_what_its_heaviest_occurrence_does():
    weights = [1.0, 0.5, 0.25, 0, 0.5, 1, 0, 1, 0.5, 0.25]
    assert recall(weights, [MAM, MALS]) == 0.75  # (1 + 0.5) / 2, above the 0.5 of "mammals"
    assert recall(weights, [MAM, MALS, THE, BREATHE, DOT]) == 0.5  # the mean of 0.75 and 0.25; "the" is too short
    assert recall(weights, [N17, MAM, MALS]) == 0.375  # numbers count: 0 and 0.75
    assert recall(weights, [E, TUDES]) == 0.375
    assert recall(weights, [BREATHE, OXYGEN]) == 0.25  # what the source lacks is not asked for
    assert recall(weights, [ABOUT, OXYGEN, THE]) is None


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 1.0), (1 / 8, 1 / 8), (0.0, 0.0)])
def test_an_average_of_eight_gives_an_eighth(weight, expected):
    assert recall([weight] * len(SOURCE), [MAM, MALS, BREATHE]) == expected

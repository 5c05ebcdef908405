"""Whether sources name a planted fact's place: counted on known sources, in documents as the study makes them."""

import json
from pathlib import Path

import pytest

from transpooler.benchmarks.quality.needles import make_vocabulary, recall_facts
from transpooler.benchmarks.quality.source_recall import find_facts, score
from transpooler.benchmarks.quality.study import load_study
from transpooler.launch.demo.corpus import study_sources
from transpooler.trainer.evaluation.sources import GroundedSentence, Source
from transpooler.trainer.evaluation.summaries import Summary

FIELDS = make_vocabulary().fields


def test_each_fact_is_a_sentence_of_its_own(tmp_path: Path) -> None:
    paths = study_sources(load_study("studies/needles_in_sentences"), None, tmp_path)
    for line in paths["test"].read_text().splitlines():
        row = json.loads(line)
        facts = find_facts(row["article"], FIELDS)
        assert " ".join(row["article"][slice(*facts[field])] for field in FIELDS) == row["abstract"]
        assert recall_facts(row["abstract"], row["article"]) == 1.0
        assert 72 <= len(row["article"].split()) <= 96
        sentences = row["article"].split(". ")
        assert {len(sentence.split()) for sentence in sentences[:-1]} <= {1, 2, 3, 4}
        assert len(sentences) >= 18


def summary(*sentences: tuple[str, list[tuple[int, int]]]) -> Summary:
    found = [
        GroundedSentence(text=text, sources=tuple(Source(start=start, end=end, weight=0.1) for start, end in spans))
        for text, spans in sentences
    ]
    return Summary(text="", num_source_tokens=1, read_ids=[0], sentences=tuple(found))


def test_a_hit_is_the_sentence_of_the_fact_among_the_first_two_sources() -> None:
    a, b = FIELDS[:2]
    article = f"x x. {a} q r s. y y. {b} t u v."
    (first, second), (third, fourth) = (0, 4), (article.index("y"), article.index("y") + 4)
    fact_a, fact_b = find_facts(article, [a, b]).values()
    made = summary(
        (f"{a} q r s.", [fact_a]),  # at first
        (f"{a} q r x.", [(first, second), fact_a]),  # wrong, but read at the right place
        (f"{b} t u v.", [(first, second), (third, fourth), fact_b]),  # too late
        (f"{b} t u v.", []),
        ("about nothing.", [fact_b]),
    )
    found = score([made], [{"article": article}])
    assert found == {
        "sentences": 4,
        "written right": pytest.approx(3 / 4),
        "first": pytest.approx(1 / 4),
        "first two": pytest.approx(2 / 4),
        "by chance": pytest.approx(2 / 4),
    }

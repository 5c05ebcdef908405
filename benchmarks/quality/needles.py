"""Documents of which few words carry the answer: a study in which it must matter what pooling keeps.

A document is filler (Zipf's law) with two dense passages of two facts each, anywhere; a fact is the name of a field and
three words, each from a small list of its own. The summary: the facts in the order of the fields. What is worth keeping
can be told from the words, not from where they stand. Documents are 24 to 256 words long (log-uniform), held-out ones
192 to 256. The same seed gives the same bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import atomic_write

NUM_FIELDS, WORDS_A_FACT, CHOICES, NUM_FILLER = 4, 3, 11, 200
FACTS_A_PASSAGE = 2
FACT_WORDS = NUM_FIELDS * (1 + WORDS_A_FACT)
LENGTHS = (24, 256)
HELD_OUT_LENGTHS = (192, 256)
DOCUMENTS = {"train": 8_000, "validation": 200, "test": 200}
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Words:
    """The vocabulary; no word belongs to two lists."""

    fields: list[str]
    facts: list[list[list[str]]]
    """[field][place in the fact][choice]."""
    filler: list[str]
    """The most frequent first."""


def needle_sources(folder: Path, documents: dict[str, int] | None = None, seed: int = 0) -> dict[str, Path]:
    """Write a .jsonl file of article/abstract/id for each split, unless it is there; returns their paths."""
    documents = DOCUMENTS if documents is None else documents
    paths = {split: folder / f"{split}.jsonl" for split in documents}
    words = vocabulary(seed)
    for number, (split, count) in enumerate(documents.items()):
        if paths[split].is_file():
            continue
        rng = np.random.default_rng((seed, number))
        lengths = LENGTHS if split == "train" else HELD_OUT_LENGTHS
        with atomic_write(paths[split]) as file:
            for index in range(count):
                num_words = int(np.exp(rng.uniform(*np.log(lengths))))
                article, abstract = document(words, num_words, rng)
                row = {"article": article, "abstract": abstract, "id": f"{split}-{index}"}
                file.write(json.dumps(row) + "\n")
    return paths


def vocabulary(seed: int = 0) -> Words:
    """Made-up words of two or three syllables."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    rng, made = np.random.default_rng(seed), dict[str, None]()
    num_words = NUM_FIELDS * (1 + WORDS_A_FACT * CHOICES) + NUM_FILLER
    while len(made) < num_words:
        made["".join(rng.choice(syllables, size=rng.integers(2, 4)))] = None
    names = iter(made)

    def take(count: int) -> list[str]:
        return [next(names) for _ in range(count)]

    fields = take(NUM_FIELDS)
    facts = [[take(CHOICES) for _ in range(WORDS_A_FACT)] for _ in range(NUM_FIELDS)]
    return Words(fields=fields, facts=facts, filler=take(NUM_FILLER))


def document(words: Words, num_words: int, rng: np.random.Generator) -> tuple[str, str]:
    """(article of `num_words` words, abstract)."""
    facts = [
        " ".join([field, *(str(rng.choice(choices)) for choices in places)])
        for field, places in zip(words.fields, words.facts, strict=True)
    ]
    order = rng.permutation(NUM_FIELDS)
    passages = [" ".join(facts[i] for i in part) for part in order.reshape(-1, FACTS_A_PASSAGE)]
    shares = 1 / np.arange(1, NUM_FILLER + 1)
    filler = rng.choice(words.filler, size=num_words - FACT_WORDS, p=shares / shares.sum()).tolist()
    places = np.sort(rng.integers(0, len(filler) + 1, size=len(passages)))
    for place, passage in zip(places[::-1], passages, strict=True):
        filler.insert(place, passage)
    return " ".join(filler), " ".join(facts)


def recalled_facts(reference: str, generated: str) -> float:
    """Share of the reference's facts that the summary gives word for word."""
    words, size = reference.split(), 1 + WORDS_A_FACT
    facts = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return sum(f" {fact} " in f" {' '.join(generated.split())} " for fact in facts) / len(facts)

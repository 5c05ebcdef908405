"""Documents in which few words carry the answer, so that it must matter what pooling keeps.

A document is filler with two dense passages of two facts each, anywhere; a fact is the name of a field and three words,
each from a small list of made-up ones. The summary is the facts in the order of the fields. Words show what is worth
keeping; positions do not. Filler is made up, too (Zipf's law), or running text of real documents.
Documents are 24 to 256 words long (with text: to 400, in sentences: to 96; log-uniform), held-out ones at least three
quarters of that. The same seed and texts give the same bytes.

In sentences, each fact is one, and so is every run of SENTENCE_WORDS filler words: what a sentence of the summary
should have been read from is then one sentence of the document.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transpooler.common import UserError, atomic_write
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.documents import RawDocument, read_documents

NUM_FIELDS, WORDS_A_FACT, CHOICES, NUM_FILLER = 4, 3, 11, 200
FACTS_A_PASSAGE = 2
FACT_WORDS = NUM_FIELDS * (1 + WORDS_A_FACT)
SENTENCE_WORDS = 4
SHORTEST, LONGEST, LONGEST_IN_TEXT, LONGEST_IN_SENTENCES, HELD_OUT_SHARE = 24, 256, 400, 96, 0.75
DOCUMENTS = {"train": 8_000, "validation": 200, "test": 200}
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"

Filler = Callable[[int, np.random.Generator], list[str]]
"""(number of words, generator) -> words."""


@dataclass(frozen=True)
class Words:
    """The vocabulary; no word belongs to two lists."""

    fields: list[str]
    facts: list[list[list[str]]]
    """[field][place in the fact][choice]."""
    filler: list[str]
    """The most frequent first."""


def write_needles(
    folder: Path,
    documents: dict[str, int] | None = None,
    *,
    texts: dict[str, Path] | None = None,
    sentences: bool = False,
    words: Words | None = None,
    seed: int = 0,
) -> dict[str, Path]:
    """Write a .jsonl file of article/abstract/id for each split; returns their paths.

    `texts`: a file of documents for each split, whose running text is the filler; `sentences`: end each fact by a full
    stop, and every SENTENCE_WORDS words of filler; `words`: those of the facts (None: made up).
    """
    documents = DOCUMENTS if documents is None else documents
    known = words or make_vocabulary(seed)
    longest = LONGEST_IN_SENTENCES if sentences else LONGEST if texts is None else LONGEST_IN_TEXT

    def make(num_words: int, rng: np.random.Generator, filler: Filler) -> tuple[str, str]:
        return make_document(known, num_words, rng, filler, sentences=sentences)

    fillers = {split: _zipf(known) if texts is None else _running_text(texts[split], longest) for split in documents}
    return write_documents(folder, documents, (SHORTEST, longest), fillers, make, seed)


def write_documents(
    folder: Path,
    documents: dict[str, int],
    lengths: tuple[int, int],
    fillers: dict[str, Filler],
    make: Callable[[int, np.random.Generator, Filler], tuple[str, str]],
    seed: int,
) -> dict[str, Path]:
    """Write `documents[split]` rows of article/abstract/id a split, as `make(number of words, generator, filler)` says.

    Numbers of words are log-uniform between `lengths`, held-out ones at least HELD_OUT_SHARE of the longest.
    """
    paths = {split: folder / f"{split}.jsonl" for split in documents}
    for number, (split, count) in enumerate(documents.items()):
        rng = np.random.default_rng((seed, number))
        shortest = lengths[0] if split == "train" else max(lengths[0], HELD_OUT_SHARE * lengths[1])
        with atomic_write(paths[split]) as file:
            for index in range(count):
                num_words = int(np.exp(rng.uniform(*np.log((shortest, lengths[1])))))
                article, abstract = make(num_words, rng, fillers[split])
                row = {"article": article, "abstract": abstract, "id": f"{split}-{index}"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return paths


def _zipf(words: Words) -> Filler:
    shares = 1 / np.arange(1, NUM_FILLER + 1)
    return lambda count, rng: rng.choice(words.filler, size=count, p=shares / shares.sum()).tolist()


def _running_text(path: Path, longest: int) -> Filler:
    """Filler of consecutive words of one of the file's documents."""
    texts = [text for text in _read_words(path) if len(text) >= longest]
    if not texts:
        raise UserError(f"{path}: no document has {longest} words; give longer ones")

    def filler(count: int, rng: np.random.Generator) -> list[str]:
        text = texts[rng.integers(len(texts))]
        start = int(rng.integers(len(text) - count + 1))
        return text[start : start + count]

    return filler


def flowing_text(path: Path, longest: int) -> Filler:
    """Filler of consecutive words of the file, whose documents follow one another, the first after the last."""
    text = [word for words in _read_words(path) for word in words]
    if len(text) < longest:
        raise UserError(f"{path}: all documents together have {len(text)} words (needs {longest}); give more")

    def filler(count: int, rng: np.random.Generator) -> list[str]:
        start = int(rng.integers(len(text)))
        part = text[start : start + count]
        return part + text[: count - len(part)]

    return filler


def _read_words(path: Path) -> Iterator[list[str]]:
    """The words of each document."""
    for found in read_documents([path], Columns.choose(require_target=False)):
        if isinstance(found, RawDocument):
            yield found.source.split()


def make_vocabulary(seed: int = 0) -> Words:
    """Make up words of two or three syllables."""
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


def make_document(
    words: Words, num_words: int, rng: np.random.Generator, filler: Filler, *, sentences: bool = False
) -> tuple[str, str]:
    """Make one document: (article of `num_words` words, abstract)."""
    stop = "." if sentences else ""
    facts = [
        " ".join([field, *(str(rng.choice(choices)) for choices in places)]) + stop
        for field, places in zip(words.fields, words.facts, strict=True)
    ]
    order = rng.permutation(NUM_FIELDS)
    passages = [" ".join(facts[i] for i in part) for part in order.reshape(-1, FACTS_A_PASSAGE)]
    parts = filler(num_words - FACT_WORDS, rng)
    if sentences:
        starts = range(0, len(parts), SENTENCE_WORDS)
        parts = [" ".join(parts[start : start + SENTENCE_WORDS]) + stop for start in starts]
    return " ".join(plant(parts, passages[::-1], rng)), " ".join(facts)


def plant(parts: list[str], passages: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Put the passages, in their order, anywhere between the parts."""
    places = np.sort(rng.integers(0, len(parts) + 1, size=len(passages)))
    for place, passage in zip(places[::-1], passages[::-1], strict=True):
        parts.insert(place, passage)
    return parts


def recall_facts(reference: str, generated: str) -> float:
    """The share of the reference's facts that the summary contains word for word."""
    words, size = reference.split(), 1 + WORDS_A_FACT
    facts = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return sum(f" {fact} " in f" {' '.join(generated.split())} " for fact in facts) / len(facts)

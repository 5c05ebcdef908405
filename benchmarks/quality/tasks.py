"""Tasks that tell selections apart, planted in real text: what is asked stands in few places, in many, or everywhere.

The kinds are RULER's (Hsieh et al. 2024, arXiv 2404.06654); words that are planted are made up, so that text does not
hold them by chance, and every split has the same ones.

multi_key: NUM_KEYS names have codes of three words; the last sentence asks for the code of one. Until it is read all
    are worth the same.
variables: NUM_CHAINS chains, "Let a be VALUE. Let b be a.", mixed with one another; asked are the names of one VALUE.
frequent_words: made-up words everywhere, some often and some seldom; wanted are the NUM_FREQUENT most frequent. No
    token of the text is worth keeping by itself.
question_first, question_last: NOTES_OF_EACH notes about each of four people; asked is what one of them does. A question
    at the start can steer the encoder in its own block alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transpooler.benchmarks.quality.needles import (
    Filler,
    Words,
    flowing_text,
    make_vocabulary,
    plant,
    recall_facts,
    write_documents,
)
from transpooler.benchmarks.quality.notes import NOTES

NUM_KEYS = 12
NUM_CHAINS, CHAIN_NAMES = 3, 5
NUM_FREQUENT, NUM_SELDOM = 3, 6
FREQUENT_SHARES, SELDOM_SHARE = (0.04, 0.03, 0.02), 0.005
NOTES_OF_EACH = 3

Parts = tuple[list[str], str, str]
"""(sentences to be planted, in the document's order; the question, or ''; what the summary says)."""


@dataclass(frozen=True)
class PlantedTask:
    """One kind of document, and how a summary of it is judged."""

    make: Callable[[Words, int, np.random.Generator], Parts]
    """make(made-up words, words of the document, generator)."""
    score: Callable[[str, str], float]
    """score(reference, generated) in 0..1."""
    asks_first: bool = False
    """Whether the question stands at the start, not at the end."""


def write_task(
    name: str,
    folder: Path,
    texts: dict[str, Path],
    *,
    lengths: tuple[int, int],
    documents: dict[str, int],
    seed: int = 0,
) -> dict[str, Path]:
    """Write a .jsonl file of article/abstract/id for each split of documents of a task; returns their paths.

    `texts`: a file for each split, whose running text surrounds what is planted; `lengths`: words of the shortest and
    the longest document. The same seed and texts give the same bytes. UserError for texts that are too short.
    """
    task, words = TASKS[name], make_vocabulary(seed)

    def make(num_words: int, rng: np.random.Generator, filler: Filler) -> tuple[str, str]:
        return make_task_document(task, words, num_words, rng, filler)

    fillers = {split: flowing_text(texts[split], lengths[1]) for split in documents}
    return write_documents(folder, documents, lengths, fillers, make, seed)


def make_task_document(
    task: PlantedTask, words: Words, num_words: int, rng: np.random.Generator, filler: Filler
) -> tuple[str, str]:
    """Make one document: (article of `num_words` words, abstract)."""
    sentences, question, abstract = task.make(words, num_words, rng)
    taken = sum(len(sentence.split()) for sentence in (*sentences, question))
    article = " ".join(plant(filler(num_words - taken, rng), sentences, rng))
    if question:
        article = f"{question} {article}" if task.asks_first else f"{article} {question}"
    return article, abstract


def recall_words(reference: str, generated: str) -> float:
    """The share of the reference's words that the summary contains, as RULER counts."""
    wanted, written = set(reference.split()), set(generated.split())
    return len(wanted & written) / len(wanted)


def _multi_key(words: Words, num_words: int, rng: np.random.Generator) -> Parts:
    names = rng.choice(words.filler, size=NUM_KEYS, replace=False).tolist()
    codes = [" ".join(str(rng.choice(choices)) for choices in words.facts[0]) for _ in names]
    asked = int(rng.integers(NUM_KEYS))
    sentences = [f"The code of {name} is {code}" for name, code in zip(names, codes, strict=True)]
    return sentences, f"Which is the code of {names[asked]} ?", f"{names[asked]} {codes[asked]}"


def _variables(words: Words, num_words: int, rng: np.random.Generator) -> Parts:
    drawn = rng.choice(words.filler, size=NUM_CHAINS * CHAIN_NAMES, replace=False)
    chains = drawn.reshape(NUM_CHAINS, CHAIN_NAMES).tolist()
    values = rng.choice(words.facts[0][0], size=NUM_CHAINS, replace=False).tolist()
    steps = [iter(zip(chain, [value, *chain], strict=False)) for chain, value in zip(chains, values, strict=True)]
    order = rng.permutation(np.repeat(np.arange(NUM_CHAINS), CHAIN_NAMES))
    sentences = ["Let {} be {}".format(*next(steps[chain])) for chain in order]
    asked = int(rng.integers(NUM_CHAINS))
    return sentences, f"Which names are {values[asked]} ?", " ".join(chains[asked])


def _frequent_words(words: Words, num_words: int, rng: np.random.Generator) -> Parts:
    drawn = rng.choice(words.filler, size=NUM_FREQUENT + NUM_SELDOM, replace=False).tolist()
    shares = [*FREQUENT_SHARES, *[SELDOM_SHARE] * NUM_SELDOM]
    counts = [max(1, int(share * num_words)) for share in shares]
    return rng.permutation(np.repeat(drawn, counts)).tolist(), "", " ".join(drawn[:NUM_FREQUENT])


def _question(words: Words, num_words: int, rng: np.random.Generator) -> Parts:
    notes = [
        " ".join([person, *parts])
        for person, places in zip(NOTES.fields, NOTES.facts, strict=True)
        for parts in zip(*(rng.choice(choices, NOTES_OF_EACH, replace=False) for choices in places), strict=True)
    ]
    sentences = rng.permutation(notes).tolist()
    asked = str(rng.choice(NOTES.fields))
    return sentences, f"What does the {asked} do ?", " ".join(note for note in sentences if note.startswith(asked))


def score_of(corpus: str) -> Callable[[str, str], float]:
    """How a summary is judged in a study of this corpus: score(reference, generated) in 0..1."""
    return TASKS[corpus].score if corpus in TASKS else recall_facts


TASKS = {
    "multi_key": PlantedTask(_multi_key, recall_facts),
    "variables": PlantedTask(_variables, recall_words),
    "frequent_words": PlantedTask(_frequent_words, recall_words),
    "question_first": PlantedTask(_question, recall_facts, asks_first=True),
    "question_last": PlantedTask(_question, recall_facts),
}

"""Real text of which few words carry the answer: name a passage's keywords, the most telling first.

A passage is a run of a document's words; its keywords are its words of the highest tf-idf (Salton and Buckley 1988),
document frequencies being those of the training passages. Only the passage tells which words stand there, how often.
Training takes all passages of a document, short and long ones (log-uniform; small models learn slowly from long ones
alone), held-out splits a long one from the beginning of each. The same documents give the same bytes.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_write
from common.progress import say
from data_pipeline.readers import RawDocument, read_documents

LENGTHS, HELD_OUT_LENGTHS = (24, 400), (300, 400)
"""Words of a passage."""
NUM_KEYWORDS = 6
SPLITS = ("train", "validation", "test")
_WORD = re.compile(r"(?<!\S)[a-z]{4,}(?![\w-])")
"""Lower-case words alone: in the passage and in the summary they are the same tokens."""


def keyword_sources(sources: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Write passages and keywords of each split's documents as article/abstract/id; returns the files' paths."""
    passages = {split: list(_passages(sources[split], split)) for split in SPLITS}
    frequencies = Counter(word for _, text in passages["train"] for word in set(_WORD.findall(text)))
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    for split, path in paths.items():
        found = [(key, text, keywords(text, frequencies, len(passages["train"]))) for key, text in passages[split]]
        kept = [row for row in found if len(row[2]) == NUM_KEYWORDS]
        if not kept:
            wanted = f"no passage of {HELD_OUT_LENGTHS[0]} words with {NUM_KEYWORDS} keywords"
            raise UserError(f"{sources[split]}: {wanted}; give longer documents")
        left_out = len(found) - len(kept)
        say(f"{split}: {len(kept):,} passages; {left_out:,} left out, with fewer than {NUM_KEYWORDS} keywords")
        with atomic_write(path) as file:
            for key, text, words in kept:
                file.write(
                    json.dumps({"article": text, "abstract": " ".join(words), "id": key}, ensure_ascii=False) + "\n"
                )
    return paths


def keywords(text: str, frequencies: Counter[str], num_passages: int) -> list[str]:
    """The words that training knows, by falling tf-idf, ties by the alphabet."""
    counts = Counter(_WORD.findall(text))
    scores = {
        word: count * math.log(num_passages / frequencies[word]) for word, count in counts.items() if frequencies[word]
    }
    return sorted(scores, key=lambda word: (-scores[word], word))[:NUM_KEYWORDS]


def recalled_keywords(reference: str, generated: str) -> float:
    """Share of the reference's keywords that are named, in any order."""
    wanted = set(reference.split())
    return len(wanted & set(generated.split())) / len(wanted)


def _passages(path: Path, split: str) -> Iterator[tuple[str, str]]:
    """(id, text) of passages that follow each other, white space as it was; a document's rest is left out."""
    rng = np.random.default_rng((0, SPLITS.index(split)))
    for number, document in enumerate(read_documents([path], None, None, False)):
        if not isinstance(document, RawDocument):
            continue
        starts = [match.start() for match in re.finditer(r"\S+", document.source)]
        first = 0
        while True:
            length = int(np.exp(rng.uniform(*np.log(LENGTHS if split == "train" else HELD_OUT_LENGTHS))))
            if first + length >= len(starts):
                break
            yield f"{path.name}-{number}-{first}", document.source[starts[first] : starts[first + length]].rstrip()
            if split != "train":
                break
            first += length

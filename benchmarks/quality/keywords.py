"""Real text of which few words carry the answer: name a passage's keywords, the most telling first.

A passage is a run of a document's words; its keywords are its words of the highest tf-idf (Salton and Buckley 1988),
document frequencies being those of the training passages. Only the passage tells them: how often a word stands there.
Training takes all passages of a document, held-out splits the first of each. The same documents give the same bytes.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from common.files import atomic_write
from common.progress import say
from data_pipeline.readers import RawDocument, read_documents

PASSAGE_WORDS, NUM_KEYWORDS, LEAST_COUNT = 400, 6, 2
SPLITS = ("train", "validation", "test")
_WORD = re.compile(r"(?<!\S)[a-z]{4,}(?![\w-])")
"""Lower-case words alone: in the passage and in the summary they are the same tokens."""


def keyword_sources(sources: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Write passages and keywords of each split's documents as article/abstract/id; returns the files' paths."""
    passages = {split: list(_passages(sources[split], only_first=split != "train")) for split in SPLITS}
    frequencies = Counter(word for _, text in passages["train"] for word in set(_WORD.findall(text)))
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    for split, path in paths.items():
        found = [(key, text, keywords(text, frequencies, len(passages["train"]))) for key, text in passages[split]]
        kept = [row for row in found if len(row[2]) == NUM_KEYWORDS]
        if not kept:
            wanted = f"no passage of {PASSAGE_WORDS} words with {NUM_KEYWORDS} keywords"
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
    """The words that stand at least twice in the text and are known, by falling tf-idf, ties by the alphabet."""
    counts = Counter(_WORD.findall(text))
    scores = {
        word: count * math.log(num_passages / frequencies[word])
        for word, count in counts.items()
        if count >= LEAST_COUNT and frequencies[word]
    }
    return sorted(scores, key=lambda word: (-scores[word], word))[:NUM_KEYWORDS]


def recalled_keywords(reference: str, generated: str) -> float:
    """Share of the reference's keywords that are named, in any order."""
    wanted = set(reference.split())
    return len(wanted & set(generated.split())) / len(wanted)


def _passages(path: Path, *, only_first: bool) -> Iterator[tuple[str, str]]:
    """(id, text) of whole passages, white space as it was."""
    for number, document in enumerate(read_documents([path], None, None, False)):
        if not isinstance(document, RawDocument):
            continue
        starts = [match.start() for match in re.finditer(r"\S+", document.source)]
        edges = [*starts[::PASSAGE_WORDS], len(document.source)]
        count = len(starts) // PASSAGE_WORDS
        for part in range(min(count, 1) if only_first else count):
            yield f"{path.name}-{number}-{part}", document.source[edges[part] : edges[part + 1]].rstrip()

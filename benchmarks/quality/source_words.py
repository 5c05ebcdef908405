"""How much of a summary's content words stand within its sources? On real text, where the right place is not known.

    python -m transpooler.benchmarks.quality.source_words RUN... [--documents N] [--output FOLDER]

Each RUN is a folder that `transpooler evaluate` has evaluated. Of every document, the reference and the summary that
the model wrote are traced; counted is, for each of their sentences, the share of its content words (evidence_recall's)
that stand in the passages named as its sources, in as many passages drawn at random, and anywhere in what was read.
Results: source_words.json, .csv and .md.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from transpooler.benchmarks.harness import RESULTS, write_results
from transpooler.benchmarks.quality.statistics import estimate
from transpooler.common import progress
from transpooler.data_pipeline.objectives.sentences import SentenceEnds
from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.data_pipeline.text_tokens import token_bytes
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.evaluation.evidence import content_words
from transpooler.trainer.evaluation.generate import source_ids
from transpooler.trainer.evaluation.sources import Span, ground, split_sentences, trace
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.weights.models import load_model

DRAWS = 20
NOTES = """\
Shares of a sentence's content words, averaged over the sentences of a document, then over documents; 95 % bootstrap
intervals over documents. `in sources`: in the passages (up to three) named as the sentence's sources; `by chance`: in
as many passages of the document, drawn in proportion to their lengths; `in all read`: anywhere in what was read;
`above chance`: in sources less by chance, paired by document."""


class Shares(NamedTuple):
    """What share of a sentence's content words stands where."""

    sources: float
    chance: float
    read: float


def main() -> None:
    """Measure every run, of references and of what the model wrote, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--documents", type=int, default=32, metavar="N", help="of each run's evaluation, from its start"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER")
    parsed = parser.parse_args()
    rows = [row for run in parsed.runs for row in measure(run, parsed.documents)]
    write_results("source_words", rows, NOTES, parsed.output)


def measure(run: Path, num_documents: int) -> Iterator[dict[str, Any]]:
    """A row for the references and one for the run's own summaries."""
    folder = RunFolder(run)
    config = load_config([folder.config])
    found: dict[str, list[Shares]] = {"reference": [], "generated": []}
    with (folder.evaluation(config.evaluation.split).root / "generated.jsonl").open(encoding="utf-8") as file:
        written = [json.loads(line) for line in file][:num_documents]
    for kind, shares in _measure_documents(folder.export, config, written):
        found[kind].append(shares)
    for kind, each in found.items():
        means = {name: np.array([[getattr(shares, name) for shares in each]]) for name in Shares._fields}
        above = estimate(means["sources"] - means["chance"], np.ones(len(each)))
        yield {
            "model": run.name,
            "text": kind,
            "documents": len(each),
            "in sources": float(means["sources"].mean()),
            "by chance": float(means["chance"].mean()),
            "in all read": float(means["read"].mean()),
            "above chance": f"{above.mean:.3f} ({above.low:.3f} to {above.high:.3f})",
        }


def _measure_documents(export: Path, config: Config, written: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Shares]]:
    model, tokenizer = load_model(export)
    table, rng = token_bytes(tokenizer), np.random.default_rng(0)
    ends, num_prefix = SentenceEnds(table), len(config.data.source_prefix_ids)
    dataset = ShardDataset(Path(config.data.shards) / config.evaluation.split)
    with progress(f"sources of {export.parent.name} (documents)", len(written)) as bar:
        for number, row in enumerate(written):
            assert dataset.key(number) == row["key"]
            read_ids = source_ids(dataset.read(number), tokenizer, config)
            tokens = read_ids[num_prefix:-1]
            places = [(place, place + 1) for place in range(len(tokens))]  # in tokens: shards hold no text
            spans = split_sentences(tokens, ends)
            passages = [_words(b"".join(table[token] for token in tokens[start:stop])) for start, stop in spans]
            for kind in ("reference", "generated"):
                ids = tokenizer(row[kind], add_special_tokens=False, split_special_tokens=True).input_ids
                ids = ids[: config.data.max_target_tokens - 1]
                sentences = ground(trace(model, read_ids, ids), tokenizer, ends, read_ids, places, ids, num_prefix)
                cited = [(sentence.text, [(s.start, s.end) for s in sentence.sources]) for sentence in sentences]
                if shares := list(score(cited, spans, passages, rng)):
                    yield kind, Shares(*map(fmean, zip(*shares, strict=True)))
            bar.advance()


def score(
    cited: Sequence[tuple[str, Sequence[Span]]],
    spans: Sequence[Span],
    passages: Sequence[set[bytes]],
    rng: np.random.Generator,
) -> Iterator[Shares]:
    """Shares of each sentence that has content words; cited: its text and the spans of its sources.

    spans, passages: the document's passages, and the content words of each.
    """
    lengths = np.array([stop - start for start, stop in spans], float)
    number_of = {tuple(span): number for number, span in enumerate(spans)}
    for text, sources in cited:
        if not (words := _words(text.encode())):
            continue

        def share(numbers: Sequence[int], words: set[bytes] = words) -> float:
            return len(words & set().union(*(passages[number] for number in numbers))) / len(words)

        drawn = [rng.choice(len(spans), len(sources), False, lengths / lengths.sum()).tolist() for _ in range(DRAWS)]
        yield Shares(
            sources=share([number_of[tuple(span)] for span in sources]),
            chance=fmean(map(share, drawn)),
            read=share(range(len(spans))),
        )


def _words(text: bytes) -> set[bytes]:
    return {word for word, _, _ in content_words(text)}


if __name__ == "__main__":
    main()

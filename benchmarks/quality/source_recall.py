"""Do a summary's sources name the place that a fact was read from? On planted facts, where that place is known.

    transpooler bench quality studies/needles_in_sentences --output OUT
    python -m transpooler.benchmarks.quality.source_recall OUT [--output FOLDER]

Each model of the study summarizes the study's test documents. A sentence that begins with the name of a field is about
that field's fact, which is one sentence of the document; counted is whether that one is the first of the sentence's
sources, and whether it is among the first two. Results: source_recall.json, .csv and .md.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transpooler.benchmarks.harness import RESULTS, write_results
from transpooler.benchmarks.quality.needles import make_vocabulary
from transpooler.trainer.evaluation.summaries import Summary
from transpooler.trainer.evaluation.summarizer import load
from transpooler.trainer.run_folder import RunFolder

NOTES = """\
A sentence counts that begins with the name of a field (`sentences`: how many do, of four a document), right or wrong;
`written right`: the share that gives the fact word for word. `first`, `first two`: the fact's own sentence of the
document is the first of its sources, is among the first two. `by chance`: what two sentences drawn at random reach."""


def main() -> None:
    """Measure every finished run of the study and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="output of the study needles_in_sentences")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER")
    parsed = parser.parse_args()
    with (parsed.study / "corpus" / "test.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    runs = [run for run in sorted((parsed.study / "runs").iterdir()) if RunFolder(run).export_config.is_file()]
    results = [{"model": run.name, **measure(RunFolder(run).export, rows)} for run in runs if "first" not in run.name]
    write_results("source_recall", results, NOTES, parsed.output)


def measure(model: Path, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The shares of a model's sentences whose sources name the fact, over documents of `write_needles`."""
    summaries = load(model).summarize([row["article"] for row in rows])
    return score(summaries, rows)


def score(summaries: Iterable[Summary], rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Shares over all sentences that begin with a field's name; `summaries` belong to the rows."""
    fields, right, places, chances = set(make_vocabulary().fields), [], [], []
    for summary, row in zip(summaries, rows, strict=True):
        facts = find_facts(row["article"], fields)
        chances.append(2 / row["article"].count("."))
        for sentence in summary.sentences or ():
            field = sentence.text.split(" ")[0]
            if field in facts:
                start, end = facts[field]
                right.append(sentence.text == row["article"][start:end])
                hits = [source.start < end and start < source.end for source in sentence.sources]
                places.append(hits.index(True) if True in hits else None)
    return {
        "sentences": len(places),
        "written right": fmean(right),
        "first": fmean(place == 0 for place in places),
        "first two": fmean(place in (0, 1) for place in places),
        "by chance": fmean(chances),
    }


def find_facts(article: str, fields: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Where each field's fact stands in a document in sentences: characters [start, end), the full stop included."""
    starts = {field: f" {article}".find(f" {field} ") for field in fields}
    return {field: (start, article.index(".", start) + 1) for field, start in starts.items() if start >= 0}


if __name__ == "__main__":
    main()

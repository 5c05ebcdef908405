"""Documents that models were evaluated on, each with what every run made of it; an even spread of them as samples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from transpooler.trainer.report.charts import spread
from transpooler.trainer.report.runs import Run

NUM_SAMPLES = 9


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run made of a document."""

    run: Run
    row: dict[str, Any] | None
    """Its line of generated.jsonl."""
    highlight: dict[str, Any] | None
    """Its entry of highlights.json."""

    @property
    def rouge1(self) -> float | None:
        """In 0..1."""
        scores = (self.row or {}).get("rouge")
        return scores.get("rouge1") if isinstance(scores, dict) else None


@dataclass(frozen=True, kw_only=True)
class Document:
    """One held-out document; outcomes in the order of the runs."""

    key: str
    name: str
    reference: str | None
    outcomes: list[Outcome] = field(default_factory=list)


def evaluated_documents(runs: Sequence[Run]) -> list[Document]:
    """Documents of all trained models' evaluations. One is the same in two runs if split, key and reference agree."""
    found: dict[tuple[str, str, str | None], Document] = {}
    for run in runs:
        for item in run.trained:
            for key in dict.fromkeys([*item.highlights, *item.rows]):
                row, highlight = item.rows.get(key), item.highlights.get(key)
                name = (row or highlight or {}).get("id") or key
                reference = row["reference"] if row else None
                identity = (item.metrics["split"], key, reference)
                document = found.setdefault(identity, Document(key=key, name=name, reference=reference))
                document.outcomes.append(Outcome(run=run, row=row, highlight=highlight))
    return list(found.values())


def samples(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Up to NUM_SAMPLES documents, evenly spread over the ranks of ROUGE-1, its mean where several runs share them.

    Runs that were evaluated on the same documents are shown together; so many for each such set of runs.
    """
    scored = [item for item in documents if item.outcomes and all(one.rouge1 is not None for one in item.outcomes)]
    by_runs: dict[frozenset[str], list[Document]] = {}
    for document in scored:
        by_runs.setdefault(frozenset(outcome.run.name for outcome in document.outcomes), []).append(document)
    views = []
    for names, group in by_runs.items():
        if any(names < others for others in by_runs):
            continue
        ranked = sorted(group, key=lambda document: (fmean(score_list(document)), document.key))
        views += [
            sample_view(ranked[place], f"{len(ranked) - place} of {len(ranked)}")
            for place in reversed(spread(len(ranked), NUM_SAMPLES))
        ]
    return views


def sample_view(document: Document, place: str) -> dict[str, Any]:
    """What the template shows of a sample: texts with their ROUGE-1, lead-n once."""
    first = document.outcomes[0].row or {}
    texts = [
        (outcome.run.name, points(outcome.rouge1), (outcome.row or {})["generated"]) for outcome in document.outcomes
    ]
    if "lead" in first and isinstance(first.get("lead_rouge"), dict):
        texts.append(("lead", points(first["lead_rouge"]["rouge1"]), first["lead"]))
    return {"name": document.name, "place": place, "reference": document.reference, "texts": texts}


def score_list(document: Document) -> list[float]:
    """ROUGE-1 of each run."""
    return [outcome.rouge1 for outcome in document.outcomes if outcome.rouge1 is not None]


def points(share: float | None) -> str:
    """0.123 as 12.3."""
    return "" if share is None else f"{100 * share:.1f}"

"""Documents that models were evaluated on, each with what every run made of it; a sample of them, evenly spread."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from transpooler.common import percent
from transpooler.trainer.report.charts import spread
from transpooler.trainer.report.runs import ReportedRun

NUM_SAMPLES = 9


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What one run made of a document."""

    run: ReportedRun
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
class EvaluatedDocument:
    """One held-out document; outcomes in the order of the runs."""

    key: str
    name: str
    reference: str | None
    outcomes: list[RunOutcome] = field(default_factory=list)


def collect_documents(runs: Sequence[ReportedRun]) -> list[EvaluatedDocument]:
    """Documents of all trained models' evaluations; the same in two runs if split, key and reference agree."""
    found: dict[tuple[str, str, str | None], EvaluatedDocument] = {}
    for run in runs:
        for item in run.trained:
            for key in dict.fromkeys([*item.highlights, *item.rows]):
                row, highlight = item.rows.get(key), item.highlights.get(key)
                name = (row or highlight or {}).get("id") or key
                reference = row["reference"] if row else None
                identity = (item.metrics["split"], key, reference)
                document = found.setdefault(identity, EvaluatedDocument(key=key, name=name, reference=reference))
                document.outcomes.append(RunOutcome(run=run, row=row, highlight=highlight))
    return list(found.values())


def samples(documents: Sequence[EvaluatedDocument]) -> list[dict[str, Any]]:
    """Up to NUM_SAMPLES documents for each set of runs that were evaluated on the same ones.

    They are spread evenly over the ranking by ROUGE-1 (its mean over the runs), the best first.
    """
    scored = [item for item in documents if item.outcomes and all(one.rouge1 is not None for one in item.outcomes)]
    by_runs: dict[frozenset[str], list[EvaluatedDocument]] = {}
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


def sample_view(document: EvaluatedDocument, place: str) -> dict[str, Any]:
    """What the template shows of a sample: texts with their ROUGE-1, lead-n once."""
    first = document.outcomes[0].row or {}
    texts = [
        (outcome.run.name, percent(outcome.rouge1), (outcome.row or {})["generated"]) for outcome in document.outcomes
    ]
    if "lead" in first and isinstance(first.get("lead_rouge"), dict):
        texts.append(("lead", percent(first["lead_rouge"]["rouge1"]), first["lead"]))
    return {"name": document.name, "place": place, "reference": document.reference, "texts": texts}


def score_list(document: EvaluatedDocument) -> list[float]:
    """ROUGE-1 of each run."""
    return [outcome.rouge1 for outcome in document.outcomes if outcome.rouge1 is not None]

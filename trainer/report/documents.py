"""A document as HTML: every token's weight as the darkness of its background, and the passages a summary comes from."""

from bisect import bisect_right
from collections.abc import Sequence
from html import escape
from itertools import accumulate, groupby, pairwise
from typing import Any

from markupsafe import Markup

from transpooler.common import percent
from transpooler.trainer.report.samples import EvaluatedDocument

LEVELS = 9
"""Shades; level 0 has no background."""
NUM_TENTHS = 10
Passage = tuple[int, int]
"""Characters [start, end) of a document."""


def mark_passages(pieces: Sequence[str], stages: Sequence[Sequence[float]], passages: Sequence[Passage]) -> str:
    """`mark_text`, with an element around each passage, which has its number; passages ascend and do not overlap."""
    borders = [0, *accumulate(len(piece) for piece in pieces)]
    ends = [end for _, end in passages]

    def passage_of(place: int) -> int | None:
        """The passage into which a piece reaches; white space beside its words may lie outside."""
        number = bisect_right(ends, borders[place])
        return number if number < len(passages) and passages[number][0] < borders[place + 1] else None

    parts = []
    for number, group in groupby(range(len(pieces)), key=passage_of):
        places = list(group)
        text = mark_text([pieces[at] for at in places], [[row[at] for at in places] for row in stages])
        parts.append(text if number is None else f'<span class="passage" data-passage="{number}">{text}</span>')
    return "".join(parts)


def mark_text(pieces: Sequence[str], stages: Sequence[Sequence[float]]) -> str:
    """The escaped text, whitespace kept; neighbouring pieces with equal shades in all stages share one span.

    A span's classes name its shade per stage: `s0-4 s1-9`; the stylesheet shows those of the chosen stage.
    """
    shades = list(zip(*([level(weight) for weight in row] for row in stages), strict=True)) or [()] * len(pieces)
    parts = []
    for shade, group in groupby(zip(shades, pieces, strict=True), key=lambda item: item[0]):
        text = escape("".join(piece for _, piece in group), quote=False)
        classes = " ".join(f"s{stage}-{value}" for stage, value in enumerate(shade) if value)
        visible = text.lstrip()  # indentation belongs to the token after it; shading it would only draw boxes
        if classes and visible:
            parts.append(f'{text[: len(text) - len(visible)]}<span class="{classes}">{visible}</span>')
        else:
            parts.append(text)
    return "".join(parts)


def level(weight: float) -> int:
    """Weight in 0..1 as a shade 0..LEVELS; any visible weight (half a shade) gets at least a faint one."""
    return min(LEVELS, max(0, round(weight * LEVELS)))


def shares_per_tenth(weights: Sequence[float]) -> list[float]:
    """Share of the total weight that lies in each tenth of the document (sums to 1, or all 0)."""
    total = sum(weights)
    bounds = [len(weights) * tenth // NUM_TENTHS for tenth in range(NUM_TENTHS + 1)]
    sums = [sum(weights[start:end]) for start, end in pairwise(bounds)]
    return [value / total if total else 0.0 for value in sums]


def document_views(documents: Sequence[EvaluatedDocument]) -> list[dict[str, Any]]:
    """Documents with highlights, those of most runs first, with what each run kept of them and wrote."""
    marked = [document for document in documents if any(outcome.highlight for outcome in document.outcomes)]
    return [
        {
            "name": document.name,
            "reference": document.reference,
            "arms": [
                arm_view(
                    outcome.highlight,
                    None if outcome.row is None else outcome.row["generated"],
                    run=outcome.run.name,
                    score=percent(outcome.rouge1),
                    pools=bool(outcome.run.config.model.pooling),
                )
                for outcome in document.outcomes
            ],
        }
        for document in sorted(marked, key=lambda document: -len(document.outcomes))
    ]


def arm_view(
    highlight: dict[str, Any] | None, generated: str | None, *, run: str = "", score: str = "", pools: bool = True
) -> dict[str, Any]:
    """What the template shows of one model and one document: summary, stages with their tenths, the marked text."""
    view: dict[str, Any] = {"run": run, "generated": generated, "score": score, "pools": pools, "sentences": []}
    view["highlight"] = highlight is not None
    if highlight is None:
        return view
    stages, num_tokens = highlight["stages"], highlight["num_tokens"]
    sentences = highlight.get("sentences") or ()
    passages = sorted({(source["start"], source["end"]) for sentence in sentences for source in sentence["sources"]})
    return view | {
        "html": Markup(mark_passages(highlight["pieces"], stages, passages)),
        "sentences": [_sentence_view(sentence, passages) for sentence in sentences],
        "stages": [
            {"name": stage_name, "tenths": shares_per_tenth(weights)}
            for stage_name, weights in zip(highlight["stage_names"], stages, strict=True)
        ],
        "cut": num_tokens is None or highlight["num_read_tokens"] < num_tokens,
        "num_tokens": "" if num_tokens is None else f"{num_tokens + 1:,}",  # </s> is pooled, too
        "num_read_tokens": f"{highlight['num_read_tokens'] + 1:,}",
    }


def _sentence_view(sentence: dict[str, Any], passages: Sequence[Passage]) -> dict[str, Any]:
    """A sentence of a summary, and its sources as `passage:weight`, the heaviest first, for the page's script."""
    places = [(passages.index((source["start"], source["end"])), source["weight"]) for source in sentence["sources"]]
    return {"text": sentence["text"], "sources": " ".join(f"{number}:{weight:.4g}" for number, weight in places)}

"""A summary with its sources, and how it looks: as JSON, on a page, in a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from transpooler.trainer.evaluation.highlights import Reading
from transpooler.trainer.evaluation.sources import GroundedSentence

FRAME_HEIGHT = "44rem"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One generated summary."""

    text: str
    num_source_tokens: int | None
    """Tokens of the document; None if it was cut, because the rest is not read."""
    read_ids: list[int] = field(repr=False)
    """Token ids that the model read, </s> included."""
    sentences: tuple[GroundedSentence, ...] | None = None
    """Its sentences with their sources, where they were asked for."""
    reading: Reading | None = field(default=None, repr=False)
    """What was read and kept of the document, where sources were asked for."""

    def as_dict(self, *, with_sources: bool = True) -> dict[str, Any]:
        """For JSON: the text under `summary`, the lengths, and sentences with their sources."""
        lengths = {"num_source_tokens": self.num_source_tokens, "num_read_tokens": len(self.read_ids)}
        found = self.sentences if with_sources else None
        grounded = {} if found is None else {"sentences": [sentence.as_dict() for sentence in found]}
        return {"summary": self.text, **lengths, **grounded}

    def on_page(self, name: str) -> dict[str, Any]:
        """What `trainer.report.write_documents` shows of it; ValueError without sources."""
        if self.reading is None:
            raise ValueError("this summary was made without sources; there is nothing to show beside it")
        return {
            "name": name,
            "generated": self.text,
            **self.reading.highlight(),
            "num_tokens": self.num_source_tokens,
            "num_read_tokens": len(self.read_ids) - 1,
            "sentences": [sentence.as_dict() for sentence in self.sentences or ()],
        }

    def _repr_html_(self) -> str | None:
        """For notebooks: the page, with the document beside the summary; None, which shows text, without sources."""
        return show_in_frame([self])


class Summaries(list[Summary]):
    """Summaries in the order of their documents; a notebook shows them as a page."""

    def _repr_html_(self) -> str | None:
        return show_in_frame(self)


def show_in_frame(summaries: Sequence[Summary]) -> str | None:
    """The page of some summaries in a frame of its own, so that neither its style nor a notebook's touches the other's.

    None where one was made without sources, or there is none.
    """
    from transpooler.trainer.report import render_documents

    if not summaries or any(summary.reading is None for summary in summaries):
        return None
    views = (summary.on_page(f"Document {number}") for number, summary in enumerate(summaries, 1))
    page = escape("".join(render_documents(views, len(summaries))))
    style = f"width: 100%; height: {FRAME_HEIGHT}; border: 0"
    return f'<iframe title="Summaries and their sources" style="{style}" srcdoc="{page}"></iframe>'

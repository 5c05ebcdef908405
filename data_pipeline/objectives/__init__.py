"""What a model learns from a document: the table of objectives.

A new objective is a module here with a function `make_pair` (see `MakePair`), and a row of the table. The configuration
reads the table, so this file imports nothing heavy; an objective's module is imported when its examples are made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    from transpooler.data_pipeline.config import DataConfig
    from transpooler.data_pipeline.objectives.vocabulary import Vocabulary

    MakePair: TypeAlias = Callable[
        [np.ndarray, np.ndarray | None, DataConfig, Vocabulary, np.random.Generator | None],
        tuple[np.ndarray, np.ndarray],
    ]
    """(source ids, summary ids or None, settings, vocabulary, generator) -> (source ids, target ids), both without
    </s>. May return more tokens than fit: the caller cuts both to their limits and appends </s>. Objectives that need
    summaries add no noise: they get no generator, whose making costs as much as half of a document's reading."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One row of the table."""

    name: str
    """Value of data.objective, and name of the module here that defines `make_pair`."""
    needs_summaries: bool = False
    """Whether the targets are the documents' summaries. Otherwise they are made from a window of the source that begins
    at a random token, so that epochs see different parts of long documents and not only how they begin."""
    target_share: Callable[["DataConfig"], float] = lambda _: 1.0
    """Generated tokens as a share of the source's, about; used to estimate memory where there are no summaries."""

    @property
    def make_pair(self) -> "MakePair":
        """The function that makes source and target of an example."""
        function: MakePair = import_module(f"{__name__}.{self.name}").make_pair
        return function


_ROWS = (
    Objective(name="summarize", needs_summaries=True),
    Objective(name="denoise"),
    Objective(name="gap_sentences", target_share=lambda config: config.gap_fraction),
)
OBJECTIVES = {objective.name: objective for objective in _ROWS}

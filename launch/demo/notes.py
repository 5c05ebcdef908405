"""The demo without documents of one's own: notes hidden in documentation, and a model that learns to find them.

Four readable sentences stand anywhere in a passage of what installed packages say of themselves. The decoder may read
32 of its up to 1,024 tokens and must write the four down: which 32 decides. The runs are those of studies/notes.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transpooler.benchmarks.quality.bench import run_study
from transpooler.benchmarks.quality.needles import recall_facts
from transpooler.benchmarks.quality.runs import Workplace
from transpooler.benchmarks.quality.study import load_study
from transpooler.common import print_table, read_json, say
from transpooler.launch.demo.corpus import study_sources
from transpooler.trainer.report import write_report
from transpooler.trainer.run_folder import EvaluationFolder, RunFolder

STUDY = "studies/notes"
ARMS = {
    "halving": "trained top-k (Successive Halving)",
    "strided": "averages of equal stretches",
    "random": "random tokens",
}
"""Ways to choose what the decoder reads, the trained one first."""
KEPT = 0.5
"""Share of a token that flowed into its slot, from which on it counts as kept."""
WORDS_AROUND = 8
WIDTH = 110


def run_notes(output: Path, *, processes: int = 2, overrides: Sequence[str] = (), quiet: bool = False) -> int | None:
    """Train, evaluate and compare the study's arms, report, and show one document; what is done already is skipped.

    Returns the exit code of a training run that did not finish (75: preempted, run me again), else None.
    """
    study = load_study(STUDY, arms=",".join(ARMS))
    study = replace(study, processes=processes, overrides=tuple(overrides))
    place = Workplace(study=study, shards=output / "shards", output=output, quiet=quiet)
    say("== notes are hidden in the documentation of installed packages; models learn to find them")
    if code := run_study(place, lambda: study_sources(study, None, output / "corpus")):
        return code
    runs = {arm: RunFolder(place.run_folder(arm, study.seeds[0])) for arm in ARMS}
    write_report([run.root for run in runs.values()], output / "report.html")
    print_outcome({arm: run.evaluation("test") for arm, run in runs.items()})
    print(f"\nreport, with what each model kept of each document: {output / 'report.html'}")
    return None


def print_outcome(evaluations: dict[str, EvaluationFolder]) -> None:
    """Print the shares of notes that each arm wrote, and one document: what was kept, asked and written."""
    rows = {arm: [json.loads(line) for line in _lines(files.generated)] for arm, files in evaluations.items()}
    first = {arm: written[0] for arm, written in rows.items()}
    trained = next(iter(ARMS))
    marks = read_json(evaluations[trained].highlights)[0]
    print(f"\n{len(rows[trained])} held-out passages of packages that no model was trained on, four notes in each.")
    print("The decoder reads 32 tokens of a passage. Who chooses them decides:\n")
    table = [
        {"the decoder reads": name, "notes found, %": f"{100 * _mean_recall(rows[arm]):.1f}"}
        for arm, name in ARMS.items()
    ]
    print_table("", table)
    print(f"\nOne passage, of {marks['num_read_tokens']} tokens. What the trained model kept stands in [brackets]:\n")
    print(_indent(mark_kept(marks["pieces"], marks["stages"][-1])))
    print("\nasked for:")
    print(_indent(first[trained]["reference"]))
    for arm, name in ARMS.items():
        print(f"written from {name}:")
        print(_indent(first[arm]["generated"]))


def mark_kept(pieces: Sequence[str], weights: Sequence[float]) -> str:
    """The text with what was kept in brackets; of the rest, WORDS_AROUND words before and after."""
    parts: list[tuple[bool, str]] = []
    for piece, weight in zip(pieces, weights, strict=True):
        kept = weight >= KEPT
        if parts and parts[-1][0] == kept:
            parts[-1] = (kept, parts[-1][1] + piece)
        else:
            parts.append((kept, piece))
    return "".join(
        f"{text[: len(text) - len(text.lstrip())]}[{text.strip()}]" if kept else _shorten(text) for kept, text in parts
    )


def _shorten(text: str) -> str:
    words = text.split(" ")
    if len(words) <= 2 * WORDS_AROUND + 1:
        return text
    return " ".join([*words[:WORDS_AROUND], "…", *words[-WORDS_AROUND:]])


def _mean_recall(rows: Sequence[dict[str, Any]]) -> float:
    return sum(recall_facts(row["reference"], row["generated"]) for row in rows) / len(rows)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _indent(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, initial_indent="  ", subsequent_indent="  ")

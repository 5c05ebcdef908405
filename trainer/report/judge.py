"""Files for judges, people or models: two evaluations of the same documents, with the summaries under blinded names.

judge.jsonl has a line a document; which summary is A is drawn for each, from the seed and the document's key alone.
key.json says which is which. Nothing here needs torch.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transpooler.common import UserError, atomic_write
from transpooler.trainer.report.runs import Evaluation, read_evaluation
from transpooler.trainer.run_folder import EvaluationFolder

FORMAT = 1
JUDGE, KEY = "judge.jsonl", "key.json"
NAMES = ("A", "B")
Row = dict[str, Any]


def write_judge_files(folders: tuple[Path, Path], output: Path, seed: int) -> list[Path]:
    """Write judge.jsonl and key.json into `output`; returns their paths.

    UserError: the evaluations are of different splits or documents, one is none, or `output` holds other such files.
    """
    evaluations = [_read(folder) for folder in folders]
    rows = _pair(folders, evaluations)
    orders = {first["key"]: _draw_order(seed, first["key"]) for first, _ in rows}
    lines = (_line(pair, orders[pair[0]["key"]]) for pair in rows)
    key = {
        "format": FORMAT,
        "seed": seed,
        "split": evaluations[0].metrics["split"],
        "documents": {
            name: dict(zip(NAMES, [str(folders[number]) for number in order], strict=True))
            for name, order in orders.items()
        },
    }
    contents = {
        output / JUDGE: "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
        output / KEY: json.dumps(key, indent=2, ensure_ascii=False) + "\n",
    }
    for path, content in contents.items():  # others may be judging by these
        if path.is_file() and path.read_text(encoding="utf-8") != content:
            raise UserError(f"{path}: is of other evaluations or another seed; choose another --output, or remove it")
    for path, content in contents.items():
        with atomic_write(path) as file:
            file.write(content)
    return list(contents)


def _read(folder: Path) -> Evaluation:
    files = EvaluationFolder(folder)
    for path in (files.metrics, files.generated):
        if not path.is_file():
            remedy = "give a folder that `transpooler evaluate` wrote, such as RUN/evaluation/test"
            raise UserError(f"{folder}: no finished evaluation (no {path.name}); {remedy}")
    return read_evaluation(files)


def _pair(folders: tuple[Path, Path], evaluations: list[Evaluation]) -> list[tuple[Row, Row]]:
    """The rows of both evaluations, document by document; UserError unless they are of the same ones."""
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(f"{folders[1]}: is given twice; give two evaluations")
    splits = [item.metrics["split"] for item in evaluations]
    if splits[0] != splits[1]:
        raise UserError(f"{folders[1]}: evaluates split {splits[1]}, but {folders[0]} {splits[0]}; evaluate one split")
    first, second = (item.rows for item in evaluations)
    remedy = "evaluate both on the same documents"
    if only := [key for key in [*first, *second] if (key in first) != (key in second)]:
        lacks, has = (folders[1], folders[0]) if only[0] in first else folders
        raise UserError(
            f"{lacks}: lacks document {only[0]} of {has} ({len(only)} documents are in one alone); {remedy}"
        )
    for key, row in first.items():
        if row["reference"] != second[key]["reference"]:
            raise UserError(f"{folders[1]}: document {key} has another reference than in {folders[0]}; {remedy}")
    return [(row, second[key]) for key, row in first.items()]


def _draw_order(seed: int, key: str) -> tuple[int, int]:
    """Which evaluation is A, and which is B."""
    return (1, 0) if random.Random(f"{seed} {key}").random() < 0.5 else (0, 1)


def _line(pair: tuple[Row, Row], order: tuple[int, int]) -> Row:
    """What a judge sees of one document."""
    blinded = {name: pair[number] for name, number in zip(NAMES, order, strict=True)}
    line: Row = {"key": pair[0]["key"], "id": pair[0].get("id"), "reference": pair[0]["reference"]}
    read = [row["document"] for row in pair if row.get("document") is not None]
    if read:  # the longer one, if one model reads more
        line["document"] = max(read, key=len)
        line["spans"] = {name: list(_spans(row, line["document"])) for name, row in blinded.items()}
    return line | {name: row["generated"] for name, row in blinded.items()}


def _spans(row: Row, document: str) -> Iterator[Row]:
    """The passages that a summary was written from, in the document's order, each once.

    They have their places where these are the shown document's: another tokenizer may have read its text otherwise.
    """
    places = {
        (source["start"], source["end"]) for sentence in row.get("sentences", ()) for source in sentence["sources"]
    }
    for start, end in sorted(places):
        text = row["document"][start:end]
        yield {"text": text} | ({"start": start, "end": end} if document[start:end] == text else {})

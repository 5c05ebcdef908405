"""The whole page: self-contained, escaped, complete with little, and clear about broken runs."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from run_folders import HOSTILE, add_evaluation, interval, make_run, section, text_of

from transpooler.common import UserError
from transpooler.trainer.report import write_documents, write_report


def page_of(tmp_path: Path, *runs: Path) -> str:
    write_report(list(runs), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_one_run_with_everything(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    add_evaluation(run, trained=False)
    counts = {"documents": 12, "source_tokens": 3456, "target_tokens": 78, "shards": 1, "dropped": {"bad_json": 2}}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "report.json").write_text(json.dumps({"splits": {"train": counts}}))
    page = page_of(tmp_path, run)
    for text in ("25.0", "lead-31 20.0", "untrained 2.0", "5.250", "wrong summaries 5.750", "6.125", "bad json 2"):
        assert text in page
    assert "first 5 of 10 tokens (&lt;/s&gt; counted)" in page
    assert '<span class="s0-9">def f():\n</span>    <span class="s0-4 s1-9">return</span>' in page


def test_nothing_in_a_document_becomes_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    page = page_of(tmp_path, run)
    assert HOSTILE not in page
    assert "<b>bold" not in page
    assert page.count("<script>") == page.count("</script>") == 1
    assert page.count("&lt;/script&gt;") >= 3  # name, summary, document


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    page = page_of(tmp_path, run)
    for reference in ("http://", "https://", "src=", 'href="/', "@import", "url("):
        assert reference not in page
    assert set(re.findall(r'href="(.*?)"', page)) <= {f"#{id}" for id in re.findall(r'<section id="(\w+)"', page)}


def test_a_run_that_was_never_evaluated(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "first"))
    assert "Training" in page
    assert "What the poolers kept" not in page


def test_two_runs_are_compared(tmp_path: Path) -> None:
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", learning_rate=2e-3)
    page = page_of(tmp_path, *runs)
    differing = page[page.index("differs") : page.index("a: config.yaml")]
    assert "optimizer.learning_rate" in differing
    assert "train.steps" not in differing
    assert "b held-out" in page


def test_broken_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report([tmp_path], tmp_path / "report.html")
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    row = '{"key": "a", "generated": "", "reference": ""}\n'
    (run / "evaluation" / "test" / "generated.jsonl").write_text(f'{row}{{"key"\n')
    with pytest.raises(UserError, match=r"generated.jsonl:2: not valid JSON"):
        write_report([run], tmp_path / "report.html")
    (run / "evaluation" / "test" / "generated.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(UserError, match=r"generated.jsonl:1: lacks generated, reference"):
        write_report([run], tmp_path / "report.html")
    (run / "evaluation" / "test" / "highlights.json").write_text('[{"key": "a", "pieces": [], "stages": []}]')
    with pytest.raises(UserError, match=r"highlights.json: entry 1: lacks stage_names, num_tokens, num_read_tokens"):
        write_report([run], tmp_path / "report.html")
    (run / "evaluation" / "test" / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="lacks split"):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_samples_run_from_best_to_worst(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    rows = [
        {"key": f"k{n}", "id": f"document {n}", "generated": "g", "reference": "r", "rouge": {"rouge1": n / 100}}
        for n in range(33)
    ]
    (run / "evaluation" / "test" / "generated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(tmp_path, run)
    assert re.findall(r"ROUGE-1 ([\d.]+), place (\d+) of 33", section(page, "samples")) == [
        (f"{32 - 4 * place}.0", str(1 + 4 * place)) for place in range(9)
    ]


def test_every_rouge_has_its_dialect(tmp_path: Path) -> None:
    runs = make_run(tmp_path / "old"), make_run(tmp_path / "new")
    add_evaluation(runs[0], trained=True)  # of a version that noted none
    add_evaluation(runs[1], trained=True, rouge_dialect="rouge-1.5.5")
    assert "ROUGE-1 (rouge-score)" in page_of(tmp_path, runs[0])
    page = page_of(tmp_path, runs[1])
    assert "ROUGE-1 (rouge-1.5.5)" in page
    assert "F1 in % as rouge-1.5.5 computes it" in section(page, "scores")
    assert "by ROUGE-1 (rouge-1.5.5)" in section(page, "samples")
    both = page_of(tmp_path, *runs)
    assert "ROUGE-1 (rouge-1.5.5, rouge-score) and loss" in text_of(section(both, "runs"))
    rows = text_of(section(both, "scores"))
    assert re.search(r"old 7 test, rouge-score .* new 7 test, rouge-1\.5\.5", rows)


def test_own_metrics_stand_beside_the_scores(tmp_path: Path) -> None:
    runs = make_run(tmp_path / "with"), make_run(tmp_path / "without")
    value = {"m:<f>": {"mean": 0.5, "low": -0.25, "high": 0.75}}
    add_evaluation(runs[0], trained=True, metrics=value, lead_metrics={"m:<f>": interval(12)})
    add_evaluation(runs[1], trained=True)
    page = section(page_of(tmp_path, *runs), "scores")
    assert "<f>" not in page
    text = text_of(page)
    assert "ROUGE-Lsum m:<f> words loss" in text
    assert re.search(r"with 7 test .* 0\.5 -0\.25 to 0\.75 20 5\.250", text)
    assert re.search(r"without 7 test .* \u2013 20 5\.250", text)
    assert "12 11.99 to 12.01 31" in text


def test_curves_of_rouge_name_the_dialect(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    lines = [{"step": step, "split": "validation", "loss": 6.0, "rouge1": 0.1 * step} for step in (1, 2)]
    lines = [line | {"rouge_dialect": "rouge-1.5.5"} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for keep in (8, 16):
        add_evaluation(run, trained=True, keep=keep, kept_tokens=keep, seconds_per_document=1.0)
    page = page_of(tmp_path, run)
    assert "F1, held-out, rouge-1.5.5" in text_of(section(page, "training"))
    assert "F1, rouge-score" in text_of(section(page, "budgets"))


def test_documents_alone(tmp_path: Path) -> None:
    marks = {"pieces": [HOSTILE, " end"], "stages": [], "stage_names": [], "num_tokens": 2, "num_read_tokens": 2}
    write_documents([{"name": HOSTILE, "generated": "", **marks}], tmp_path / "page.html", 1)
    page = (tmp_path / "page.html").read_text()
    assert "<b>bold" not in page
    assert "(empty)" in page
    for absent in ("Reference", "Configuration", "Training", "Scores"):
        assert absent not in page


def test_documents_are_written_one_by_one(tmp_path: Path) -> None:
    marks = {"pieces": ["x" * 100_000], "stages": [], "stage_names": [], "num_tokens": None, "num_read_tokens": 1_024}
    sizes = []

    def highlighted() -> Iterator[dict[str, Any]]:
        for number in range(5):
            incomplete = tmp_path / "page.html.incomplete"
            sizes.append(incomplete.stat().st_size if incomplete.exists() else 0)
            yield {"name": f"document {number}", "generated": "g", **marks}

    write_documents(highlighted(), tmp_path / "page.html", 5)
    assert all(later - earlier > 90_000 for earlier, later in pairwise(sizes[1:]))
    page = (tmp_path / "page.html").read_text()
    assert "<h1>5 documents</h1>" in page
    assert page.count('<details class="document" id="document-1" open>') == 1
    assert page.count("The model read the first 1,025 tokens (&lt;/s&gt; counted).") == 5

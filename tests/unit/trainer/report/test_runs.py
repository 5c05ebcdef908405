"""Several runs in one report, runs from elsewhere and of other versions."""

import json
import re
from pathlib import Path

import pytest
from run_folders import add_evaluation, make_run, section, text_of

from transpooler.common import UserError
from transpooler.trainer.report import write_report

COUNTS = {"documents": 12, "source_tokens": 3456, "target_tokens": 78, "shards": 1}


def page_of(tmp_path: Path, *runs: Path) -> str:
    write_report(list(runs), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_several_runs_have_a_row_each(tmp_path: Path) -> None:
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    add_evaluation(runs[1], trained=True)
    page = page_of(tmp_path, *runs)
    assert 'class="headline"' not in page
    rows = [text_of(row) for row in section(page, "runs").split("<tr>")[2:]]
    assert rows[0].startswith("a – – – 6.125 1,002 – 4")
    assert rows[1].startswith("b 25.0 5.250 7 test 6.125 1,002 – 4")


def test_documents_stand_once_with_all_runs_inside(tmp_path: Path) -> None:
    model = {"encoder_layers": 2, "pooling": [{"after_layer": 2, "length": 64}]}
    runs = [make_run(tmp_path / name, model=model) for name in ("a", "b")]
    runs.append(make_run(tmp_path / "flat", model={"pooling": []}))
    for run in runs:
        add_evaluation(run, trained=True)
    (runs[2] / "evaluation" / "test" / "highlights.json").write_text("[]")
    page = page_of(tmp_path, *runs)
    kept = section(page, "kept")
    assert kept.count("<details") == 1
    assert kept.count("right &amp; good") == 1
    assert kept.count('<pre class="marked"') == 2
    assert text_of(kept).count("flat does not pool") == 1
    assert text_of(section(page, "poolers")).count("flat does not pool") == 1
    assert section(page, "samples").count("<details") == 1
    assert section(page, "samples").count("right &amp; good") == 1
    assert "a 25.0, b 25.0, flat 25.0, place 1 of 1" in text_of(section(page, "samples"))
    assert section(page, "scores").count("lead-31") == 1


def test_samples_are_of_documents_that_runs_share(tmp_path: Path) -> None:
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    for run, count in zip(runs, (33, 20), strict=True):
        add_evaluation(run, trained=True)
        rows = [
            {"key": f"k{n}", "generated": "g", "reference": f"r{n}", "rouge": {"rouge1": n / 100}} for n in range(count)
        ]
        (run / "evaluation" / "test" / "generated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = text_of(section(page_of(tmp_path, *runs), "samples"))
    places = re.findall(r"a ([\d.]+), b ([\d.]+), place (\d+) of 20", shown)
    assert len(places) == 9
    assert places[0] == ("19.0", "19.0", "1")
    assert places[-1] == ("0.0", "0.0", "20")
    assert shown.count("place") == 9


def test_differing_settings_are_readable(tmp_path: Path) -> None:
    pooling = [{"after_layer": 1, "ratio": 0.25, "operator": "hard"}, {"after_layer": 2, "length": 16}]
    mixture = [{"name": "x", "shards": "y"}]
    runs = (
        make_run(tmp_path / "a", model={"encoder_layers": 2, "pooling": pooling}),
        make_run(tmp_path / "b", model={"encoder_layers": 2, "pooling": []}, data={"mixture": mixture}),
    )
    differing = section(page_of(tmp_path, *runs), "configuration").partition("<details")[0]
    assert "after layer 1 → 0.25, hard; after layer 2 → 16, successive_halving" in differing
    assert "[{name: x, shards: y, split: null, weight: 1.0}]" in differing
    assert "<code>none</code>" in differing
    assert "<code>run</code>" not in differing
    assert "None" not in differing


def test_data_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    home = tmp_path / "home"
    mixture = [{"name": "books", "shards": "data/books", "weight": 2.0}, {"name": "gone", "shards": "data/gone"}]
    run = make_run(home / "runs" / "a", run="runs/a", data={"shards": "data/all", "mixture": mixture})
    for name in ("all", "books"):
        (home / "data" / name).mkdir(parents=True)
        counts = COUNTS | {"dropped": {f"bad_{name}": 3}}
        (home / "data" / name / "report.json").write_text(json.dumps({"splits": {"train": counts}}))
    monkeypatch.chdir(tmp_path)
    data = text_of(section(page_of(tmp_path, run), "data"))
    for text in ("bad all 3", "bad books 3", "books, weight 2", f"data: {home}/data/gone not found"):
        assert text in data
    assert f"a: data: no report.json in {home}/data/gone" in capsys.readouterr().err


def test_the_same_run_twice(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(UserError, match=r"link: the same run as .*/a; give each run once"):
        write_report([run, tmp_path / "link"], tmp_path / "report.html")


def test_a_run_of_another_version(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "a")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("\ndata:\n", "\ndata:\n  bucket_batches: 4\n"))
    page = page_of(tmp_path, run)
    assert "another version; left out: data.bucket_batches" in page
    assert "left out: data.bucket_batches" in capsys.readouterr().err
    (run / "config.yaml").write_text(text.replace("  norm: p", "  norm: sideways"))
    with pytest.raises(UserError, match=r"a/config.yaml: model.norm is 'sideways"):
        write_report([run], tmp_path / "report.html")


def test_budgets_are_drawn_over_the_tokens_that_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    add_evaluation(run, trained=True)
    write_report([run], tmp_path / "report.html")
    assert 'id="budgets"' not in (tmp_path / "report.html").read_text()
    for keep, loss in ((8, 4.5), (4, 6.5)):
        add_evaluation(run, trained=True, keep=keep, kept_tokens=keep - 1, loss=loss, seconds_per_document=0.5)
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    budgets = section(page, "budgets")
    assert "Loss over kept tokens" in budgets
    assert budgets.index("3: 6.5") < budgets.index("7: 4.5")
    assert "6.5" not in section(page, "scores")  # of the model as it is alone

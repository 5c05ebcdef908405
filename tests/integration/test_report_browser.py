"""The report in a real browser: screens and paper, the slider by the keyboard's events, long documents fast."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from run_folders import add_evaluation, make_run

from tests.browser import BROWSER, FLAGS, seen
from transpooler.trainer.report import write_report

LONG_DOCUMENT_TOKENS = 30_000
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "first")
    lines = [
        {"step": step, "split": "train", "loss": 9.0 - step, "pool0_mean_top_weight": 0.5}
        | {f"pool0_share_tenth{tenth}": 0.1 for tenth in range(10)}
        for step in range(1, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    add_evaluation(folder, trained=True)
    return folder


SLIDE = """
const box = document.querySelector(".stages"), slider = box.querySelector("input");
const colours = () => [...box.querySelectorAll("pre span")].map(span => getComputedStyle(span).backgroundColor);
const shown = () => [...box.querySelectorAll(".tenths")].map(part => getComputedStyle(part).display);
const before = {colours: colours(), shown: shown(), text: box.querySelector("output").textContent};
slider.focus(); slider.value = 0; slider.dispatchEvent(new Event("input", {bubbles: true}));
const after = {colours: colours(), shown: shown(), text: box.querySelector("output").textContent};
return {before, after, focused: document.activeElement === slider, said: slider.getAttribute("aria-valuetext")};
"""


def test_the_slider_shows_the_layers_of_the_pyramid(run: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "report.html")
    result = seen(tmp_path / "report.html", SLIDE, 1280, tmp_path)
    assert result["focused"]
    assert result["before"]["text"] == "after layer 2: 1 of 4 tokens"
    assert result["after"]["text"] == result["said"] == "after layer 1: 2 of 4 tokens"
    assert result["before"]["shown"] == ["none", "grid"]
    assert result["after"]["shown"] == ["grid", "none"]
    clear = "rgba(0, 0, 0, 0)"
    # Stages [1, .5, .5, 0] and [0, 1, 0, 0] over three spans with a shade in either.
    assert [colour == clear for colour in result["before"]["colours"]] == [True, False, True]
    assert clear not in result["after"]["colours"]


@pytest.mark.parametrize("width", [1280, 500])  # Chromium makes no window narrower than 500 pixels
def test_nothing_sticks_out_sideways(run: Path, tmp_path: Path, width: int) -> None:
    write_report([run], tmp_path / "report.html")
    script = "return [document.documentElement.scrollWidth, innerWidth, document.querySelectorAll('svg').length];"
    content, window, pictures = seen(tmp_path / "report.html", script, width, tmp_path)
    assert content <= window
    assert pictures >= 3


SIDEWAYS = """
const table = document.querySelector("#scores .wide"), name = table.querySelector("tbody th");
table.scrollLeft = table.scrollWidth;
const cell = name.getBoundingClientRect(), frame = table.getBoundingClientRect();
return {scrolled: table.scrollLeft, left: cell.left - frame.left, hidden: table.scrollWidth - table.clientWidth};
"""


def test_names_stay_where_a_table_is_scrolled(run: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "report.html")
    result = seen(tmp_path / "report.html", SIDEWAYS, 500, tmp_path)
    assert result["scrolled"] == result["hidden"] > 0
    assert abs(result["left"]) < 1


LAYOUT = """
const right = part => document.querySelector(part).getBoundingClientRect().right;
const strip = document.querySelector("#poolers svg").getBoundingClientRect().width;
const links = [...document.querySelectorAll("nav a")].map(link => document.querySelector(link.getAttribute("href")));
return {gap: right(".headline") - right(".headline div:last-child"), strip, links: links.map(part => part?.id)};
"""


def test_sections_are_linked_and_nothing_is_stretched(run: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "report.html")
    result = seen(tmp_path / "report.html", LAYOUT, 1280, tmp_path)
    assert result["gap"] <= 2
    assert result["strip"] < 640
    assert result["links"] == ["kept", "poolers", "samples", "scores", "training", "data", "configuration"]


PRINT = """
const open = () => [...document.querySelectorAll("details[open]")].length;
const all = document.querySelectorAll("details:not(.values)").length, before = open();
dispatchEvent(new Event("beforeprint"));
const printed = open();
dispatchEvent(new Event("afterprint"));
return {all, before, printed, after: open()};
"""


def test_a_link_to_a_document_opens_it(run: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "report.html")
    script = """
    const document1 = document.querySelector("#document-1");
    document1.open = false; location.hash = "#document-1"; dispatchEvent(new Event("hashchange"));
    return document1.open;
    """
    assert seen(tmp_path / "report.html", script, 1280, tmp_path)


def test_printing_opens_what_is_closed_and_closes_it_again(run: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "report.html")
    result = seen(tmp_path / "report.html", PRINT, 1280, tmp_path)
    assert result["before"] == result["after"] == 1
    assert result["printed"] == result["all"] > 1


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="poppler-utils are not installed")
def test_paper_is_white_and_complete_in_the_dark_theme(run: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "dark.html").write_text(page.replace("<html ", '<html data-theme="dark" '), encoding="utf-8")
    profile, pdf = f"--user-data-dir={tmp_path / 'profile'}", tmp_path / "dark.pdf"
    command = [str(BROWSER), *FLAGS, profile, f"--print-to-pdf={pdf}", (tmp_path / "dark.html").as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    picture = subprocess.run(["pdftoppm", "-r", "40", "-gray", "-singlefile", pdf], capture_output=True, check=True)
    pixels = picture.stdout.split(b"\n", 3)[3]
    assert sum(pixels) / len(pixels) > 0.8 * 255  # white paper,
    assert min(pixels) < 100  # dark ink
    text = subprocess.run(["pdftotext", pdf, "-"], capture_output=True, text=True, check=True).stdout
    assert text.count("right & good") == 2  # of the document that is open, and of the sample that is closed
    assert "wrong summary" in " ".join(text.split())  # the last column of the scores


def test_a_long_document_is_shown_whole(run: Path, tmp_path: Path) -> None:
    path = run / "evaluation" / "test" / "highlights.json"
    (entry,) = json.loads(path.read_text())
    entry["pieces"] = [f" w{number}" + ("\n" if number % 13 == 0 else "") for number in range(LONG_DOCUMENT_TOKENS)]
    entry["stages"] = [[(number * step % 10) / 9 for number in range(LONG_DOCUMENT_TOKENS)] for step in (1, 3)]
    path.write_text(json.dumps([entry]))
    write_report([run], tmp_path / "report.html")
    script = "const started = performance.now();" + SLIDE.replace(
        "return {", "const shown_ms = performance.now() - started; return {shown_ms, "
    )
    result = seen(tmp_path / "report.html", script, 1280, tmp_path)
    print(f"{LONG_DOCUMENT_TOKENS} tokens: two restylings in {result['shown_ms']:.0f} ms")
    assert len(result["after"]["colours"]) == 0.9 * LONG_DOCUMENT_TOKENS  # every tenth has no shade at all

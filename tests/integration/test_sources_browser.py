"""Summaries beside their documents in a real browser: sentences light up their sources, by pointer and by keyboard."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import BROWSER, seen
from transpooler.trainer.evaluation.highlights import Reading
from transpooler.trainer.evaluation.sources import GroundedSentence, Source
from transpooler.trainer.evaluation.summaries import Summary
from transpooler.trainer.report import write_documents

NUM_LINES = 1500
CALM = ("--force-prefers-reduced-motion",)  # scrolling is then done when the script looks
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


def line(number: int) -> tuple[int, int]:
    """Where a line of the document stands; all are equally long."""
    return 20 * number, 20 * number + 20


def sentence(text: str, *sources: tuple[int, float]) -> GroundedSentence:
    places = [(*line(number), weight) for number, weight in sources]
    return GroundedSentence(text=text, sources=tuple(Source(start=a, end=b, weight=w) for a, b, w in places))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A document of 1,500 lines in words of five characters, and a summary of three sentences."""
    text = "".join(f"line {number:04d} <b> ends.\n" for number in range(NUM_LINES))
    starts = np.arange(0, len(text), 5)
    summary = Summary(
        text="First. Second. Third.",
        num_source_tokens=len(starts),
        read_ids=[0] * (len(starts) + 1),
        sentences=(sentence("First.", (1400, 0.5), (3, 0.25)), sentence("Second.", (700, 0.4)), sentence("Third.")),
        reading=Reading(text=text, starts=starts, stages=[np.tile([1, 0.5, 0, 0], NUM_LINES)], stage_names=["kept"]),
    )
    write_documents([summary.on_page("<i>paper"), summary.on_page("second")], tmp_path / "page.html", 2)
    return tmp_path / "page.html"


LOOK = """
const box = document.querySelector(".grounded"), pane = box.querySelector("pre");
const sentences = [...box.querySelectorAll("[data-sources]")];
const key = name => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const point = (kind, part) => part.dispatchEvent(new MouseEvent(kind, {bubbles: true}));
const look = () => ({
  lit: [...document.querySelectorAll(".lit")].map(part => [part.textContent, part.dataset.rank,
    getComputedStyle(part).backgroundColor]),
  inView: [...document.querySelectorAll(".lit")].map(part => {
    const own = part.getBoundingClientRect(), frame = pane.getBoundingClientRect();
    return own.top >= frame.top && own.bottom <= frame.bottom;
  }),
  paneInView: pane.getBoundingClientRect().bottom <= innerHeight + 1,
  pressed: sentences.map(part => part.getAttribute("aria-pressed")),
  stops: sentences.map(part => part.tabIndex),
  listed: [...box.querySelectorAll(".found li")].map(part => part.textContent),
  said: box.querySelector(".found [aria-live]").textContent,
  focus: sentences.indexOf(document.activeElement),
  marks: getComputedStyle(pane.querySelector(".s0-9")).backgroundColor,
});
"""


def test_a_sentence_that_has_the_focus_lights_up_its_sources(page: Path, tmp_path: Path) -> None:
    script = f"{LOOK} const before = look(); sentences[0].focus(); return [before, look()];"
    before, after = seen(page, script, 1280, tmp_path, *CALM)
    assert (before["lit"], before["stops"]) == ([], [0, -1, -1])
    (first, second) = sorted(after["lit"], key=lambda part: part[1])
    assert (first[:2], second[:2]) == (["line 1400 <b> ends.\n", "1"], ["line 0003 <b> ends.\n", "2"])
    assert first[2] != second[2]  # by their weights
    assert after["inView"] == [False, True]  # in the document's order: the heaviest is the one that is scrolled to
    assert after["listed"] == ["150 %line 1400 <b> ends.", "225 %line 0003 <b> ends."]
    assert after["pressed"] == ["true", "false", "false"]
    assert before["marks"] != after["marks"] == "rgba(0, 0, 0, 0)"  # what was kept gives way


def test_the_keyboard_alone(page: Path, tmp_path: Path) -> None:
    script = f"""{LOOK}
    sentences[0].focus(); key("ArrowRight"); const second = look();
    key("End"); const third = look(); key("ArrowDown"); key("Home"); const first = look();
    key("Enter"); const button = document.activeElement; button.click(); const listed = button.textContent;
    key("Escape"); return {{second, third, first, listed, cleared: look()}};"""
    result = seen(page, script, 1280, tmp_path, *CALM)
    assert [result[name]["focus"] for name in ("second", "third", "first")] == [1, 2, 0]
    assert result["second"]["stops"] == [-1, 0, -1]
    assert [part[0] for part in result["second"]["lit"]] == ["line 0700 <b> ends.\n"]
    assert result["second"]["inView"] == [True]
    assert (result["third"]["lit"], result["third"]["said"][:10]) == ([], "No passage")
    assert result["listed"].startswith("150 %")
    assert result["cleared"]["lit"] == []
    assert result["cleared"]["pressed"] == ["false"] * 3


def test_the_pointer_shows_and_gives_back_what_was_chosen(page: Path, tmp_path: Path) -> None:
    script = f"""{LOOK}
    point("click", sentences[1]); point("mouseover", sentences[0]); const over = look();
    point("mouseout", sentences[0]); return [over, look()];"""
    over, after = seen(page, script, 1280, tmp_path, *CALM)
    assert len(over["lit"]) == 2
    assert [part[0] for part in after["lit"]] == ["line 0700 <b> ends.\n"]
    assert over["inView"] == [False, True]
    assert after["inView"] == [True]


@pytest.mark.parametrize("width", [1280, 390])
def test_desktop_and_phone_show_sentence_and_source_together(page: Path, tmp_path: Path, width: int) -> None:
    script = f"""{LOOK} point("click", sentences[0]);
    const top = sentences[0].getBoundingClientRect().top;
    return {{...look(), top, sideways: document.documentElement.scrollWidth - innerWidth, width: innerWidth}};"""
    result: dict[str, Any] = seen(page, script, width, tmp_path, *CALM)
    assert result["width"] == width
    assert result["sideways"] <= 0
    assert result["paneInView"]
    assert result["top"] >= 0
    assert result["inView"] == [False, True]


def test_the_page_needs_no_network_and_escapes_what_it_shows(page: Path) -> None:
    text = page.read_text()
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "<i>paper" not in text
    assert "<b> ends" not in text

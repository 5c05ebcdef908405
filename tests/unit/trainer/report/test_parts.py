"""Charts, marked documents and names: the pure parts of the report."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import without_tags

from transpooler.trainer.report.charts import (
    Series,
    find_coinciding,
    line_chart,
    shorten,
    spread,
    thin,
    ticks,
    value_rows,
)
from transpooler.trainer.report.documents import LEVELS, level, mark_text, shares_per_tenth
from transpooler.trainer.report.poolers import strip
from transpooler.trainer.report.runs import run_names, started_in


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_the_values(low: float, spread: float) -> None:
    found = ticks(low, low + spread)
    slack = 1e-6 * max(1.0, abs(low), spread)
    assert found[0] <= low + slack
    assert found[-1] >= low + spread - slack
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))


def test_ticks_are_round_and_whole_for_steps() -> None:
    assert ticks(0.3, 9.7) == [0, 2.5, 5, 7.5, 10]
    assert ticks(1, 3, whole=True) == [1, 2, 3]
    assert ticks(5, 5)[0] < 5 < ticks(5, 5)[-1]


def test_numbers_are_short() -> None:
    assert [shorten(value) for value in (0.25, 12, 1500, 3e6, 0)] == ["0.25", "12", "1.5k", "3M", "0"]


def test_a_chart_places_points_and_escapes_names() -> None:
    svg = line_chart([Series(name="<a>", points=[(0, 0.0), (100, 4.0), (200, math.nan)])], "loss & more")
    assert "&lt;a&gt;, step 100: 4" in svg
    assert "nan" not in svg
    assert 'aria-label="loss &amp; more"' in svg
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert places[0][0] < places[1][0]  # later is further right
    assert places[0][1] > places[1][1]  # more is further up
    assert line_chart([Series(name="a", points=[])], "empty") == ""


def test_coinciding_lines_are_drawn_in_turns() -> None:
    points = [(0, 1.0), (10, 2.0)]
    lines = [Series(name=name, points=points, colour=number) for number, name in enumerate("abc")]
    other = Series(name="d", points=[(0, 3.0), (10, 2.0)], colour=3)
    assert find_coinciding([*lines, other]) == [["a", "b", "c"]]
    svg = line_chart([*lines, other], "learning rate")
    assert re.findall(r"stroke-dasharray:14 28;stroke-dashoffset:(-?\d+)", svg) == ["0", "-14", "-28"]
    assert svg.count("stroke-dasharray") == 3


def test_colours_do_not_repeat() -> None:
    hues = sorted(Series(name="", points=[], colour=number).hue for number in range(24))
    assert min(after - before for before, after in pairwise(hues)) > 5


def test_axes_begin_at_zero_where_asked() -> None:
    line = Series(name="a", points=[(1, 980.0), (2, 1000.0)])
    assert ">0</text>" in line_chart([line], "speed", from_zero=True).partition('text-anchor="middle"')[0]
    assert ">0</text>" not in line_chart([line], "speed").partition('text-anchor="middle"')[0]


def test_the_table_has_the_steps_that_most_lines_share() -> None:
    train = Series(name="a", points=[(float(step), step / 2) for step in range(1, 101)])
    held_out = Series(name="b", points=[(50.0, 7.0), (100.0, 8.0)])
    assert value_rows([train, held_out]) == [("50", ["25", "7"]), ("100", ["50", "8"])]
    assert len(value_rows([train])) == 16


def test_where_training_was_started() -> None:
    assert started_in(Path("/home/me/runs/a"), "runs/a") == Path("/home/me")
    assert started_in(Path("/home/me/runs/a"), "/home/me/runs/a") == Path()
    assert started_in(Path("/moved/a"), "runs/a") == Path()


def test_thinning_takes_means_of_neighbours() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned[-1] == (999.0, 0.5)
    assert thin(points[:100], 100) == points[:100]


@given(st.lists(st.tuples(st.text(max_size=5), st.floats(0, 1), st.floats(0, 1)), max_size=30))
def test_marked_text_keeps_every_character(items: list[tuple[str, float, float]]) -> None:
    pieces = [text for text, _, _ in items]
    stages = [[first for _, first, _ in items], [second for _, _, second in items]]
    assert without_tags(mark_text(pieces, stages)) == "".join(pieces)


def test_marked_text_escapes_merges_and_names_shades() -> None:
    html = mark_text(["</script>", "<b>", "  x", " y", "z"], [[0.0, 0.0, 1.0, 0.99, 0.5], [0, 0, 0, 0, 1]])
    assert html == f'&lt;/script&gt;&lt;b&gt;  <span class="s0-9">x y</span><span class="s0-{level(0.5)} s1-9">z</span>'
    assert mark_text(["a", "b"], []) == "ab"


def test_shades_grow_with_weight() -> None:
    shades = [level(weight / 100) for weight in range(101)]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (0, LEVELS)


def test_shares_per_tenth() -> None:
    assert shares_per_tenth([1.0] * 10 + [0.0] * 10) == pytest.approx([0.2] * 5 + [0.0] * 5)
    assert shares_per_tenth([0.0] * 20) == [0.0] * 10
    assert sum(shares_per_tenth([0.5, 0.5, 1.0])) == pytest.approx(1)


def test_run_names_are_short_where_unique() -> None:
    assert run_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert run_names([Path("x/a"), Path("y/a")]) == ["x/a", "y/a"]


def test_a_strip_is_darker_where_more_was_kept() -> None:
    curves = [[(step, 0.5 if tenth == 3 else 0.05) for step in range(10, 2000, 10)] for tenth in range(10)]
    svg = strip(curves, "<run>")
    assert "&lt;run&gt;" in svg
    found = re.findall(r'y="(\d+)" width="[\d.]+" height="\d+" style="--share:([\d.]+)"', svg)
    assert len(found) == 60 * 10  # thinned to 60 columns
    assert {share for y, share in found if y == str(12 + 3 * 14)} == {"1.00"}
    assert {share for y, share in found if y != str(12 + 3 * 14)} == {"0.17"}
    assert "tenth 4: 50.0 %" in svg


def test_a_strip_of_one_line() -> None:
    assert strip([[(10, 0.1)]] * 10, "run").count("<rect") == 10


def test_a_spread_has_both_ends() -> None:
    assert spread(3, 9) == [0, 1, 2]
    assert spread(101, 3) == [0, 50, 100]
    assert spread(33, 9) == list(range(0, 33, 4))

"""Line charts as inline SVG. Colours come from the page's CSS, so that light, dark and print agree."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 12, 30
MAX_POINTS = 240
MAX_ROWS = 16
FIRST_HUE, GOLDEN_ANGLE = 255, 137.5
INTERLEAVED_DASH = 14
MAX_DOTS = 24


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(step, value), in order of steps."""
    colour: int = 0
    """Number of the colour; runs keep theirs over all charts."""
    dashed: bool = False

    @property
    def hue(self) -> float:
        """Degrees; by the golden angle, so that no number of runs repeats a colour."""
        return (FIRST_HUE + GOLDEN_ANGLE * self.colour) % 360


def line_chart(series: Sequence[Series], label: str, *, from_zero: bool = False) -> str:
    """An SVG of all series with axes, grid, and a title per point on hover. Non-finite values are left out.

    Series that coincide are drawn in turns, a dash of each, so that none hides the others.
    """
    drawn = [(line, thin([p for p in line.points if math.isfinite(p[1])])) for line in series]
    values = [point for _, points in drawn for point in points]
    if not values:
        return ""
    x_ticks = ticks(min(x for x, _ in values), max(x for x, _ in values), whole=True)
    lowest = min(y for _, y in values)
    y_ticks = ticks(min(lowest, 0) if from_zero else lowest, max(y for _, y in values))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in y_ticks:
        y = place(x_ticks[0], tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{shorten(tick)}</text>')
    for tick in x_ticks:
        x = place(tick, y_ticks[0])[0]
        anchor = "end" if tick == x_ticks[-1] else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{shorten(tick)}</text>')
    for line, points in drawn:
        same = [other for other, _ in drawn if other.points == line.points]
        turn = (same.index(line), len(same))
        parts.extend(_draw_line(line, points, [place(*point) for point in points], turn))
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Four to seven round numbers that enclose low..high, evenly spaced."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-9):  # equal, as far as tick labels can tell
        spread = max(abs(low) * 0.1, 1e-3)
        low, high = low - spread, high + spread
    rough = (high - low) / 4
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points: means of neighbours, so that no outlier is silently picked or dropped."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / limit)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def find_coinciding(series: Sequence[Series]) -> list[list[str]]:
    """Names of the series that have the same points, per such set."""
    sets: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for line in series:
        sets.setdefault(tuple(line.points), []).append(line.name)
    return [names for names in sets.values() if len(names) > 1]


def value_rows(series: Sequence[Series]) -> list[tuple[str, list[str]]]:
    """(step, values) for the chart's table: at most MAX_ROWS of the steps at which most series have a value."""
    values = [dict(line.points) for line in series]
    counts = Counter(step for row in values for step in row)
    steps = sorted(step for step, count in counts.items() if count == max(counts.values()))
    chosen = [steps[place] for place in spread(len(steps), MAX_ROWS)]
    return [(f"{step:,.0f}", [f"{row[step]:,.4g}" if step in row else "–" for row in values]) for step in chosen]


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` numbers below `count`, the first and the last among them, evenly spaced."""
    if count <= wanted:
        return list(range(count))
    return [round(number * (count - 1) / (wanted - 1)) for number in range(wanted)]


def shorten(value: float) -> str:
    """Such as 0.25, 12, 1.5k, 3M."""
    for divisor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= divisor:
            return f"{value / divisor:g}{suffix}"
    return f"{value:.4g}"


def _draw_line(
    line: Series, points: Sequence[tuple[float, float]], places: Sequence[tuple[float, float]], turn: tuple[int, int]
) -> list[str]:
    number, count = turn
    dashed = " dashed" if line.dashed else ""
    dashes = (
        f' style="stroke-dasharray:{INTERLEAVED_DASH} {INTERLEAVED_DASH * (count - 1)};'
        f'stroke-dashoffset:{-INTERLEAVED_DASH * number}"'
        if count > 1
        else ""
    )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<g class="series" style="--hue:{line.hue:g}">']
    if len(places) > 1:
        parts.append(f'<polyline class="line{dashed}"{dashes} points="{path}"/>')
    mark = " dot" if len(places) == 1 or (line.dashed and len(places) <= MAX_DOTS) else ""
    for (step, value), (x, y) in zip(points, places, strict=True):
        title = escape(f"{line.name}, step {step:,.0f}: {value:,.4g}")
        parts.append(f'<circle class="hit{mark}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{title}</title></circle>')
    return [*parts, "</g>"]

"""Curves as inline SVG, so that a report needs neither a script nor a connection."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from training.sight.history import Series

WIDTH, HEIGHT = 460, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 22
MAX_POINTS = 300
COLOURS = ("#1b6ca8", "#c8553d", "#2a8a57", "#8a5fb0", "#b8860b", "#4d5766", "#c2478d", "#3aa6a6")
_PLACE = re.compile(r"_(encoder|layer_\d+|block_\d+)$")


def split_place(name: str) -> tuple[str, str]:
    """What a scalar measures, and where: ("sight/cka_scenes", "layer_2"); where may be empty."""
    found = _PLACE.search(name)
    return (name[: found.start()], found.group(1)) if found else (name, "")


def group_series(history: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """{chart: {label: series}}: names that differ only by the place share a chart."""
    charts: dict[str, dict[str, Series]] = {}
    for name, series in history.items():
        chart, label = split_place(name)
        charts.setdefault(chart, {})[label] = series
    return {
        chart: dict(sorted(lines.items(), key=lambda line: place_order(line[0])))
        for chart, lines in charts.items()
    }


def draw_chart(title: str, lines: Mapping[str, Series]) -> str:
    """A figure with one line a series: steps to the right, values upwards, both axes labelled."""
    points = [point for series in lines.values() for point in series]
    steps = (min(p[0] for p in points), max(p[0] for p in points))
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    room = 0.06 * (high - low) or max(abs(high), 1e-6) * 0.05
    values = (low - room, high + room)
    paths, legend = [], []
    for number, (label, series) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        paths.append(_path(series, steps, values, colour))
        if label:
            mark = f'<b style="color:{colour}">&#9644;</b>'
            legend.append(f"<span>{mark} {escape(label)}</span>")
    ticks = "".join(_tick(v, steps, values) for v in sorted({low, (low + high) / 2, high}))
    ends = "".join(
        f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step}</text>'
        for x, anchor, step in ((LEFT, "start", steps[0]), (WIDTH - RIGHT, "end", steps[1]))
    )
    key = f'<div class="key">{" ".join(legend)}</div>' if legend else ""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{ticks}{ends}{''.join(paths)}</svg>{key}</figure>"
    )


def thin(series: Series) -> Series:
    """At most 300 points: the mean of each stretch of steps; the last point as it is."""
    if len(series) <= MAX_POINTS:
        return series
    size = -(-len(series) // MAX_POINTS)
    parts: Sequence[Series] = [series[i : i + size] for i in range(0, len(series) - 1, size)]
    means = [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
    return [*[point for point in means if point[0] < series[-1][0]], series[-1]]


def _path(series: Series, steps: tuple[int, int], values: tuple[float, float], colour: str) -> str:
    spots = [(_x(step, steps), _y(value, values)) for step, value in thin(series)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    dots = ""
    if len(spots) <= 40:
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}">'
            f"<title>step {step}: {value:.4g}</title></circle>"
            for (x, y), (step, value) in zip(spots, thin(series), strict=True)
        )
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>{dots}'


def _tick(value: float, steps: tuple[int, int], values: tuple[float, float]) -> str:
    y = _y(value, values)
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e2dc"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    )


def _x(step: int, steps: tuple[int, int]) -> float:
    share = (step - steps[0]) / (steps[1] - steps[0]) if steps[1] > steps[0] else 0.5
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float, values: tuple[float, float]) -> float:
    share = (value - values[0]) / (values[1] - values[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def place_order(place: str) -> tuple[str, int]:
    """Sorts places from the encoder to the last layer."""
    kind, _, number = place.rpartition("_")
    return (kind, int(number)) if number.isdigit() else ("", 0)

"""Plots as plain SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 48, 56
COLOURS = ("#16804e", "#be322a", "#3465a4", "#965800", "#75507b")
FLOOR_MS = 0.05


def draw_distribution(title: str, samples_ms: Mapping[str, Sequence[float]]) -> str:
    """The share of samples up to each value, as SVG; milliseconds on a logarithmic axis."""
    known = {name: np.sort(values) for name, values in samples_ms.items() if len(values)}
    top_ms = max((float(values[-1]) for values in known.values()), default=1.0)
    decades = range(int(np.floor(np.log10(FLOOR_MS))), int(np.ceil(np.log10(max(top_ms, 1.0)))) + 1)
    low, high = float(decades[0]), float(decades[-1])

    def x_of(value_ms: float) -> float:
        share = (np.log10(max(value_ms, 10.0**low)) - low) / (high - low)
        return LEFT + float(share) * (WIDTH - LEFT - RIGHT)

    def y_of(share: float) -> float:
        return TOP + (1.0 - share) * (HEIGHT - TOP - BOTTOM)

    parts = [_text(LEFT, 24, title, 16, "start")]
    for decade in decades:
        x = x_of(10.0**decade)
        parts.append(_line(x, TOP, x, HEIGHT - BOTTOM, "#e2e2dc"))
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{10.0**decade:g}", 12, "middle"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(LEFT, y_of(share), WIDTH - RIGHT, y_of(share), "#e2e2dc"))
        parts.append(_text(LEFT - 8, y_of(share) + 4, f"{share:.0%}", 12, "end"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 12, "milliseconds", 12, "middle"))
    for index, (name, values) in enumerate(known.items()):
        colour = COLOURS[index % len(COLOURS)]
        shares = np.arange(1, len(values) + 1) / len(values)
        points = " ".join(
            f"{x_of(float(value)):.1f},{y_of(float(share)):.1f}"
            for value, share in zip(values, shares, strict=True)
        )
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'
        )
        parts.append(_text(WIDTH - RIGHT, TOP + 18 * index - 6, name, 13, "end", colour))
    return _wrap(parts)


def draw_course(title: str, unit: str, minutes: Sequence[float], values: Sequence[float]) -> str:
    """A value over minutes, as SVG, from zero."""
    top = 1.1 * max(values, default=1.0) or 1.0
    last = max(max(minutes, default=1.0), 1e-9)
    points = " ".join(
        f"{LEFT + minute / last * (WIDTH - LEFT - RIGHT):.1f},"
        f"{TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM):.1f}"
        for minute, value in zip(minutes, values, strict=True)
    )
    parts = [
        _text(LEFT, 24, title, 16, "start"),
        _line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#646c78"),
        _text(LEFT - 8, TOP + 4, f"{top:.3g} {unit}", 12, "start"),
        _text(WIDTH - RIGHT, HEIGHT - BOTTOM + 18, f"{last:.1f} min", 12, "end"),
        f'<polyline fill="none" stroke="{COLOURS[0]}" stroke-width="2" points="{points}"/>',
    ]
    return _wrap(parts)


def _wrap(parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="system-ui, DejaVu Sans, sans-serif"'
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fafaf7"/>'
    return f"{head} {style}>{paper}{''.join(parts)}</svg>\n"


def _line(x_0: float, y_0: float, x_1: float, y_1: float, colour: str) -> str:
    return f'<line x1="{x_0:.1f}" y1="{y_0:.1f}" x2="{x_1:.1f}" y2="{y_1:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, size: int, anchor: str, colour: str = "#22272f") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(text)}</text>'
    )

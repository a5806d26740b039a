"""Success rates as one SVG: environments down, a dot with its interval for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from training.sight.curves import COLOURS

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 150, 30, 40, 36
LINE, GAP, HEADING = 13, 9, 24  # pixels a variant, between environments, above an axis
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def draw_rates(report: Mapping[str, Any]) -> str:
    """The success rates of an evaluation's report, a file or inline in a page.

    A dot is all episodes of a variant, its line Wilson's interval at 95 % with a scene as one
    trial, the small strokes the rates of single training seeds. What was not run is left out.
    """
    variants, axes = report["variants"], report["axes_of_envs"]
    parts: list[str] = []
    y = float(TOP)
    for axis in dict.fromkeys(axes.values()):
        y += HEADING
        parts.append(_text(8, y - 6, axis, "start", weight="bold"))
        for env in (name for name, own in axes.items() if own == axis):
            rows = [(number, v["envs"][env]) for number, v in enumerate(variants)]
            rows = [(number, row) for number, row in rows if row["episodes"]]
            middle = y + LINE * max(len(rows), 1) / 2
            parts.append(_text(LEFT - 12, middle + 4, env, "end"))
            for place, (number, row) in enumerate(rows):
                colour = COLOURS[number % len(COLOURS)]
                parts += _mark(y + LINE * (place + 0.5), row, colour, variants[number]["name"], env)
            y += LINE * max(len(rows), 1) + GAP
    grid = [
        f'<line x1="{_x(step):.1f}" x2="{_x(step):.1f}" y1="{TOP}" y2="{y:.1f}" stroke="#e2e2dc"/>'
        + _text(_x(step), y + 16, f"{step:g}", "middle")
        for step in STEPS
    ]
    height = y + BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="success rates" font-family="system-ui, DejaVu Sans, sans-serif">'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fafaf7"/>'
        f"{_key(variants)}{''.join(grid)}{''.join(parts)}</svg>\n"
    )


def _mark(y: float, row: Mapping[str, Any], colour: str, name: str, env: str) -> list[str]:
    low, high = row["interval"]
    told = f"{name}, {env}: {row['success_rate']:.2f} [{low:.2f}, {high:.2f}]"
    rates = [rate for rate in row["rates"] if rate is not None]
    seeds = rates if len(rates) > 1 else []
    return [
        f'<line x1="{_x(low):.1f}" x2="{_x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
        f'stroke="{colour}" stroke-opacity="0.45" stroke-width="4"/>',
        *(
            f'<line x1="{_x(rate):.1f}" x2="{_x(rate):.1f}" y1="{y - 5:.1f}" y2="{y + 5:.1f}" '
            f'stroke="{colour}"/>'
            for rate in seeds
        ),
        f'<circle cx="{_x(row["success_rate"]):.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
        f"<title>{escape(told)}</title></circle>",
    ]


def _key(variants: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for number, variant in enumerate(variants):
        x, colour = 14 + number * (WIDTH - 16) / len(variants), COLOURS[number % len(COLOURS)]
        parts.append(f'<circle cx="{x:.1f}" cy="20" r="4" fill="{colour}"/>')
        parts.append(_text(x + 10, 24, variant["name"], "start"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, *, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="#22272f">{escape(text)}</text>'
    )


def _x(rate: float) -> float:
    return LEFT + rate * (WIDTH - LEFT - RIGHT)

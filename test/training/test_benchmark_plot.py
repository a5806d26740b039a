"""The plot of success rates shows what the report holds, where it belongs."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from training.benchmark.plot import LEFT, RIGHT, WIDTH, draw_rates

SVG = "{http://www.w3.org/2000/svg}"
AXES = {"none": "none", "dim_light": "visual", "overlay_03": "visual"}


def row(successes: int, episodes: int, *rates: float) -> dict[str, Any]:
    if not episodes:
        return {"episodes": 0, "success_rate": None, "interval": [0.0, 1.0], "rates": [None]}
    rate = successes / episodes
    return {
        "episodes": episodes,
        "success_rate": rate,
        "interval": [rate / 2, (1 + rate) / 2],
        "rates": list(rates) or [rate],
    }


def plot(*variants: tuple[str, dict[str, Any]]) -> ElementTree.Element:
    named = [{"name": name, "envs": envs} for name, envs in variants]
    return ElementTree.fromstring(draw_rates({"variants": named, "axes_of_envs": AXES}))


def told(svg: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """The dots by what they say."""
    dots = [dot for dot in svg.iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None]
    return {str(dot.findtext(f"{SVG}title")): dot for dot in dots}


def test_every_rate_that_was_measured_has_its_dot_at_its_place() -> None:
    full = {"none": row(3, 4), "dim_light": row(0, 4), "overlay_03": row(4, 4)}
    part = {"none": row(1, 4), "dim_light": row(2, 4), "overlay_03": row(0, 0)}
    dots = told(plot(("align <0.2>", full), ("default", part)))
    assert len(dots) == 5
    dot = dots["align <0.2>, none: 0.75 [0.38, 0.88]"]
    assert float(dot.attrib["cx"]) == pytest.approx(LEFT + 0.75 * (WIDTH - LEFT - RIGHT), abs=0.1)
    assert len({dot.attrib["fill"] for dot in dots.values()}) == 2
    heights = [float(dot.attrib["cy"]) for dot in dots.values()]
    assert len(set(heights)) == 5 and heights == sorted(heights)


def test_training_seeds_are_strokes_of_their_own_where_there_are_several() -> None:
    def strokes(*rates: float) -> int:
        svg = plot(("align", {name: row(2, 4, *rates) for name in AXES}))
        lines = svg.iter(f"{SVG}line")
        return sum(
            line.attrib["x1"] == line.attrib["x2"] and "stroke-width" not in line.attrib
            for line in lines
        )

    grid = strokes()
    assert strokes(0.25, 0.5, 0.75) == grid + 3 * len(AXES)
    assert strokes(0.5) == grid


def test_the_plot_is_as_high_as_what_it_shows() -> None:
    rows = {name: row(2, 4) for name in AXES}
    svg = plot(*[(f"variant {number}", rows) for number in range(6)])
    height = float(svg.attrib["viewBox"].split()[3])
    assert max(float(dot.attrib["cy"]) for dot in told(svg).values()) < height

"""A map of labelled points as inline SVG: shapes as well as colours tell the labels apart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from training.sight.curves import COLOURS

SIDE, MARGIN, RADIUS = 300, 12, 4.0
SHAPES = ("circle", "square", "diamond", "triangle")


def draw_scatter(
    title: str, points: NDArray[np.float64], labels: NDArray[np.int64], names: Sequence[str]
) -> str:
    """A figure of points (n, 2), one colour and shape a label, its key below."""
    low, high = points.min(0), points.max(0)
    scale = (SIDE - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    spots = MARGIN + (points - low) * scale
    marks = "".join(
        _mark(int(label), float(x), SIDE - float(y), names[label])
        for (x, y), label in zip(spots, labels, strict=True)
    )
    key = " ".join(
        f'<span><svg viewBox="0 0 12 12" style="width:11px">{_mark(number, 6, 6, name)}</svg> '
        f"{escape(name)}</span>"
        for number, name in enumerate(names)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{escape(title)}">{marks}</svg>'
        f'<div class="key">{key}</div></figure>'
    )


def _mark(label: int, x: float, y: float, name: str) -> str:
    colour, r = COLOURS[label % len(COLOURS)], RADIUS
    shape = SHAPES[(label // len(COLOURS) + label) % len(SHAPES)]
    told = f"<title>{escape(name)}</title>"
    style = f'fill="{colour}" fill-opacity="0.8"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {style}>{told}</circle>'
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "diamond": ((0, -r * 1.3), (r * 1.3, 0), (0, r * 1.3), (-r * 1.3, 0)),
        "triangle": ((0, -r * 1.2), (r * 1.2, r), (-r * 1.2, r)),
    }[shape]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" {style}>{told}</polygon>'

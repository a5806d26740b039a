"""Lays a map of weights over a picture, for people: where words look."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Anchor colours of the map, dark blue (least) over green to yellow (most); read as viridis.
_ANCHORS = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64
)
_OPACITY = 0.6

Picture = NDArray[np.uint8]


def overlay(picture: Picture, weights: NDArray[np.floating], width: int, height: int) -> Picture:
    """Lay a map (g, g) over a picture (H, W, 3), both stretched to (height, width, 3) uint8.

    Colours run from the map's least to its 99th percentile.
    """
    from PIL import Image

    low, high = float(weights.min()), float(np.quantile(weights, 0.99))
    unit = np.clip((weights - low) / max(high - low, 1e-12), 0.0, 1.0)
    steps = np.linspace(0.0, 1.0, len(_ANCHORS))
    colours = np.stack([np.interp(unit, steps, channel) for channel in _ANCHORS.T], axis=-1)
    heat = Image.fromarray(colours.round().astype(np.uint8))
    heat = heat.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(Image.blend(Image.fromarray(stretch(picture, width, height)), heat, _OPACITY))


def cut(picture: Picture, box: tuple[float, float, float, float]) -> Picture:
    """What lies within left, top, right, bottom, in pixels: what a model sees of a picture."""
    left, top, right, bottom = map(round, box)
    return picture[top:bottom, left:right]


def stretch(picture: Picture, width: int, height: int) -> Picture:
    """A picture (H, W, 3) stretched to (height, width, 3)."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

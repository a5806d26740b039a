"""Pictures of attention: maps laid over what the camera saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.runtime import heatmap

TILE_PX = 192
CAPTION_PX = 18
GAP_PX = 4

Picture = NDArray[np.uint8]


def overlay(picture: Picture, weights: NDArray[np.floating]) -> Picture:
    """Lay a map (g, g) over a picture (H, W, 3), both stretched to a square tile."""
    return heatmap.overlay(picture, weights, TILE_PX, TILE_PX)


def fit(picture: Picture) -> Picture:
    """A picture as a square tile."""
    return heatmap.stretch(picture, TILE_PX, TILE_PX)


def arrange(rows: Sequence[Sequence[tuple[str, Picture]]]) -> Picture:
    """Rows of captioned tiles as one picture (H, W, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    columns = max(len(row) for row in rows)
    width = columns * (TILE_PX + GAP_PX) + GAP_PX
    height = len(rows) * (TILE_PX + CAPTION_PX + GAP_PX) + GAP_PX
    sheet = Image.new("RGB", (width, height), (250, 250, 247))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for r, row in enumerate(rows):
        for c, (caption, tile) in enumerate(row):
            x, y = GAP_PX + c * (TILE_PX + GAP_PX), GAP_PX + r * (TILE_PX + CAPTION_PX + GAP_PX)
            draw.text((x + 2, y + 2), shorten(caption, draw, font), (34, 39, 47), font=font)
            sheet.paste(Image.fromarray(tile), (x, y + CAPTION_PX))
    return np.asarray(sheet)


def shorten(text: str, draw: object, font: object) -> str:
    """Cut a caption to the width of a tile."""
    measure = draw.textlength  # type: ignore[attr-defined]
    if measure(text, font=font) <= TILE_PX - 4:
        return text
    while text and measure(text + "...", font=font) > TILE_PX - 4:
        text = text[:-1]
    return text + "..."

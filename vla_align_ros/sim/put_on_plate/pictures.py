"""The camera's picture as published: the photographed table behind, textures blended in."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_align_ros.errors import SimulationError

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@lru_cache(maxsize=48)
def read_picture(path: Path, width: int, height: int) -> Picture:
    """A picture file as (height, width, 3) uint8 RGB."""
    picture = cv2.imread(str(path))
    if picture is None:
        raise SimulationError(
            "A picture cannot be read", got=path, expected="a PNG or JPEG", fix="vla-align assets"
        )
    return np.asarray(
        cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), (width, height)), np.uint8
    )


def put_behind(picture: Picture, foreground: Mask, table: Picture) -> Picture:
    """Replace all but the robot and the objects by the photographed table."""
    return np.where(foreground[..., None], picture, table)


def blend_foreground(
    picture: Picture, foreground: Mask, table: Picture, texture: Picture, mix: float
) -> Picture:
    """`put_behind`, with the texture mixed into the foreground.

    The texture is stretched over the smallest rectangle that holds the foreground.
    """
    left, top, right, bottom = bounding_box(foreground)
    shape = (right - left + 1, bottom - top + 1)
    stretched = cv2.resize(texture.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR)
    box = (slice(top, bottom + 1), slice(left, right + 1))
    mixed = picture.astype(np.float32)
    mixed[box] = stretched * mix + mixed[box] * (1.0 - mix)
    return put_behind(mixed.astype(np.uint8), foreground, table)


def blend_whole(
    picture: Picture, foreground: Mask, table: Picture, texture: Picture, mix: float
) -> Picture:
    """`put_behind`, with the texture mixed into the whole picture.

    The texture is twice as large as the picture, and shifted by the middle of the foreground.
    """
    height, width = foreground.shape
    left, top, right, bottom = bounding_box(foreground)
    x = int(np.clip((left + right) // 2, 1, width - 1))
    y = int(np.clip((top + bottom) // 2, 1, height - 1))
    laid = texture[y : y + height, x : x + width].astype(np.float32)
    behind = put_behind(picture, foreground, table).astype(np.float32)
    return (behind * (1.0 - mix) + laid * mix).astype(np.uint8)


def bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels set, inclusive; zeros without any."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())

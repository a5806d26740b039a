"""Success as published: the object is on its plate by geometry and by contact."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SIDEWAYS_SLACK_M = 0.01
HEIGHT_SLACK_M = 0.05
CONTACT_N = 0.03


def world_size_m(size_m: ArrayLike, rotation: ArrayLike) -> Array:
    """Extents (3,) along the world's axes of a box of `size_m`, turned by `rotation` (3, 3)."""
    extents: Array = np.abs(np.asarray(rotation, float)) @ np.asarray(size_m, float)
    return extents


def is_on(
    source_m: ArrayLike,
    target_m: ArrayLike,
    source_size_m: ArrayLike,
    target_size_m: ArrayLike,
    contact_n: float,
) -> bool:
    """Whether the source lies on the target.

    Positions (3,) are the meshes' origins in the world; sizes (3,) are `world_size_m` at the
    start of the episode; `contact_n` is the force between the two in newtons. The gripper may
    still hold the source: so it is published.
    """
    offset = np.asarray(source_m, float) - np.asarray(target_m, float)
    source, target = np.asarray(source_size_m, float) / 2, np.asarray(target_size_m, float) / 2
    near = float(np.hypot(offset[0], offset[1])) <= float(target.max()) + SIDEWAYS_SLACK_M
    low = offset[2] > 0.0 and float(offset[2] - target[2] - source[2]) <= HEIGHT_SLACK_M
    return bool(near and low and contact_n > CONTACT_N)

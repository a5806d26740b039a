"""Where things may lie: the published grids of positions, headings and starting joints."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.sim.put_on_plate.environments import Places

Array = NDArray[np.float64]

CENTRE_M = np.array([-0.16, 0.0])
HALF_EDGE_M = 0.075
GAP_M, WIDE_GAP_M = 0.070, 0.150

START_JOINTS: tuple[float, ...] = (
    *(-0.01840777, 0.0398835, 0.22242722, -0.00460194, 1.36524296, 0.00153398),
    *(0.037, 0.037),
)
"""Six arm joints in rad and two fingers in m, as measured on the data set's robot."""

_INNER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_EDGE, _BEYOND = -0.2, 1.2


def _to_metres(grid: list[tuple[float, float]]) -> Array:
    metres: Array = (2.0 * np.array(grid) - 1.0) * HALF_EDGE_M + CENTRE_M
    return metres


def inner_grid_m() -> Array:
    """The 36 training positions (36, 2): a square of 15 cm in steps of 3 cm, world frame."""
    return _to_metres([(x, y) for x in _INNER for y in _INNER])


def outer_grid_m() -> Array:
    """The 28 positions (28, 2) of the ring 3 cm outside the training square."""
    rows = (_EDGE, *_INNER, _BEYOND)
    return _to_metres(
        [(x, y) for x in rows for y in (rows if x in (_EDGE, _BEYOND) else (_EDGE, _BEYOND))]
    )


def _pairs(grid: Array) -> Array:
    apart = np.linalg.norm(grid[:, None] - grid[None], axis=-1)
    first, second = np.nonzero(apart > GAP_M)
    return _stack(grid, (first, 0.95), (second, 0.95))


def _triples(
    grid: Array, gaps_m: tuple[float, float, float], heights_m: tuple[float, ...]
) -> Array:
    """Triples whose distances 1-2, 3-2 and 1-3 exceed `gaps_m`."""
    apart = np.linalg.norm(grid[:, None] - grid[None], axis=-1)
    fits = (
        (apart > gaps_m[0])[:, :, None]
        & (apart > gaps_m[1]).T[None]
        & (apart > gaps_m[2])[:, None, :]
    )
    indices = np.nonzero(fits)
    return _stack(grid, *zip(indices, heights_m, strict=True))


def _stack(grid: Array, *columns: tuple[NDArray[np.intp], float]) -> Array:
    return np.stack(
        [np.c_[grid[index], np.full(len(index), height)] for index, height in columns], axis=1
    )


@cache
def positions_m(places: Places) -> Array:
    """Every choice of starting positions (N, things, 3), world frame, things falling from above.

    Things are object, plate, and for triples the second object (or the place that the object
    moves to) or the second plate; for boards the carrot, then left, centre and right.
    """
    match places:
        case "pairs":
            return _pairs(inner_grid_m())
        case "outer_pairs":
            return _pairs(outer_grid_m())
        case "object_triples":
            return _triples(inner_grid_m(), (GAP_M, GAP_M, WIDE_GAP_M), (0.95, 0.92, 1.0))
        case "plate_triples":
            return _triples(inner_grid_m(), (GAP_M, WIDE_GAP_M, GAP_M), (1.0, 0.92, 0.96))
        case "boards":
            return np.array(
                [[[-0.10, 0.0, 1.0], [-0.25, -0.155, 1.0], [-0.25, 0.0, 1.0], [-0.25, 0.155, 1.0]]]
            )


def headings_rad(places: Places) -> Array:
    """The headings that objects start with."""
    if places == "boards":
        return np.zeros(1)
    if places == "outer_pairs":
        return np.array([-1.0, -3.0, -5.0, -7.0]) * (np.pi / 8)
    return np.array([0.0, 1.0, 2.0, 3.0]) * (np.pi / 4)


@cache
def joint_offsets_rad() -> Array:
    """Every offset (N, 8) added to `START_JOINTS` in EEPose."""
    near = np.array([-0.15, -0.08, 0.0, 0.08, 0.15])
    wrist = np.array([-0.6, -0.3, 0.0, 0.3, 0.6])
    grid = np.stack(np.meshgrid(*[near] * 5, wrist, indexing="ij"), axis=-1).reshape(-1, 6)
    kept = grid[np.abs(grid[:, 1] + grid[:, 2]) <= 0.25]
    offsets: Array = np.c_[kept, np.zeros((len(kept), 2))]
    return offsets

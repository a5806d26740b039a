"""Where to grasp a thing from above, chosen from the shape that collides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.errors import SimulationError

Array = NDArray[np.float64]
Cells = NDArray[np.bool_]
Hull = tuple[Array, NDArray[np.intp]]
"""Corners (N, 3) in metres and triangles (M, 3) of one convex part."""

# The open gripper, measured on the robot's collision meshes, about the point between the tips.
TIP_BELOW_TOOL_M = 0.0156
INSIDE_M, OUTSIDE_M = 0.026, 0.042
HALF_WIDTH_M = 0.0145
PALM_ABOVE_TIP_M, PALM_HALF_M = 0.036, (0.052, 0.020)
NARROWEST_M = 0.010
CLEARANCE_M = 0.003

SAMPLE_M, CELL_M = 0.003, 0.004
HEADINGS = 16
TIP_STEP_M = 0.008
DEPTH_M = 0.024
FINALISTS = 10  # of each heading
GRIP_HEIGHT_M = 0.020
DEEP_CELLS, FLAT_CELLS = 7, 12
WIDE_COST, CONTACT_COST_M = 0.2, 0.020  # a narrow grip forgives more; a flat one holds better
TIGHT_COST, ROOMY_M = 3.0, 0.042  # what fills the open gripper jams in it
SLIP_COST = 4.0  # of the width that bulges out below the tips: closing squeezes it away


class GraspError(SimulationError):
    """No pose from above holds the thing as it lies: it may be knocked over, or too wide."""


@dataclass(frozen=True)
class Grasp:
    """A grasp from above: point between the tips (3,) and heading of the closing direction.

    `width_m` is the thing's width between the fingers, `cost_m` the badness in metres: lower is
    better. In whatever frame the hulls were given in, whose z points up.
    """

    tip_m: Array
    heading_rad: float
    width_m: float
    cost_m: float


def choose_grasp(hulls: Sequence[Hull], table_m: float) -> Grasp:
    """The best grasp from above of a thing that lies on a table at height `table_m`.

    SimulationError if no pose of the gripper encloses a part of it.
    """
    return rank_grasps(hulls, table_m)[0]


def rank_grasps(hulls: Sequence[Hull], table_m: float) -> list[Grasp]:
    """The finalists among all poses that are free of collision, the best first."""
    points = fill(hulls)
    centre = points.mean(axis=0)
    found: list[Grasp] = []
    for heading in np.arange(HEADINGS) * np.pi / HEADINGS:
        found += _grasps_along(points, centre, float(heading), table_m)
    if not found:
        raise GraspError(
            "Nothing to grasp",
            got=f"a thing of {np.ptp(points, axis=0).round(3).tolist()} m",
            expected=f"a part between {NARROWEST_M} and {2 * INSIDE_M} m wide, from above",
        )
    return sorted(found, key=lambda grasp: grasp.cost_m)


def fill(hulls: Sequence[Hull]) -> Array:
    """Points (N, 3) on a grid of `SAMPLE_M` inside any of the convex parts."""
    parts = []
    for corners, triangles in hulls:
        low, high = corners.min(axis=0), corners.max(axis=0)
        axes = [np.arange(a, b + SAMPLE_M, SAMPLE_M) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        normals, offsets = _planes(corners, triangles)
        parts.append(grid[(grid @ normals.T <= offsets + 1e-4).all(axis=1)])
    return np.concatenate(parts)


def _planes(corners: Array, triangles: NDArray[np.intp]) -> tuple[Array, Array]:
    a, b, c = (corners[triangles[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1)
    kept = lengths > 1e-12
    normals, a = normals[kept] / lengths[kept, None], a[kept]
    outward = np.sign(((a - corners.mean(axis=0)) * normals).sum(axis=1))
    normals = normals * np.where(outward == 0, 1.0, outward)[:, None]
    return normals, (normals * a).sum(axis=1)


def _grasps_along(points: Array, centre: Array, heading: float, table_m: float) -> list[Grasp]:
    """Grasps that close along one heading; cells are (closing axis, width axis, up)."""
    turn = np.array([[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]])
    turned = np.c_[points[:, :2] @ turn, points[:, 2]]
    origin = turned.min(axis=0)
    origin[2] = table_m
    cells = np.floor((turned - origin) / CELL_M).astype(int)
    cells[:, 2] = np.maximum(cells[:, 2], 0)
    solid = np.zeros(cells.max(axis=0) + 1, bool)
    solid[tuple(cells.T)] = True
    middle = np.r_[centre[:2] @ turn, centre[2]]
    found = []
    for tip in range(1, solid.shape[2], round(TIP_STEP_M / CELL_M)):
        found += _grasps_at(solid, tip, (middle - origin) / CELL_M)
    found.sort(key=lambda spot: spot[0])
    return [
        Grasp(
            np.r_[turn @ (origin[:2] + CELL_M * (np.array([a, b]) + 0.5)), table_m + CELL_M * tip],
            heading,
            width * CELL_M,
            cost + _contact_cost(solid, a, b, tip),
        )
        for cost, a, b, tip, width in found[:FINALISTS]
    ]


def _grasps_at(solid: Cells, tip: int, middle: Array) -> list[tuple[float, int, int, int, int]]:
    """(cost, cell along, cell across, tip's cell, width in cells) of free poses at one height."""
    grip = _any_above(solid[:, :, : tip + round(GRIP_HEIGHT_M / CELL_M)], tip)
    blocked, whole = _any_above(solid, max(tip - 1, 0)), _any_above(solid, 0)
    under_palm = _any_above(solid, tip + round(PALM_ABOVE_TIP_M / CELL_M))
    half = round(HALF_WIDTH_M / CELL_M)
    inner, outer = (
        round(edge / CELL_M) for edge in (INSIDE_M - CLEARANCE_M, OUTSIDE_M + CLEARANCE_M)
    )
    palm = tuple(round(value / CELL_M) for value in PALM_HALF_M)
    tops = (solid * np.arange(1, solid.shape[2] + 1)).max(axis=2)
    found = []
    for a, b in np.argwhere(grip).tolist():
        rows = slice(max(b - half, 0), b + half + 1)
        near_finger, far_finger = (
            slice(max(a - outer, 0), max(a - inner, 0)),
            slice(a + inner + 1, a + outer + 1),
        )
        over = (_around(a, palm[0]), _around(b, palm[1]))
        if blocked[near_finger, rows].any() or blocked[far_finger, rows].any():
            continue
        if under_palm[over].any():
            continue
        low = max(a - inner, 0)
        held = low + np.flatnonzero(grip[low : a + inner + 1, rows].any(axis=1))
        width = int(held[-1] - held[0] + 1)
        if width * CELL_M < NARROWEST_M:
            continue
        off_centre = abs(float(held[0] + held[-1]) / 2 - a)
        depth = (int(tops[held[0] : held[-1] + 1, b].max()) - tip) * CELL_M
        beside = float(np.hypot(a + 0.5 - middle[0], b + 0.5 - middle[1]))
        cost = CELL_M * (beside + off_centre + WIDE_COST * width) + max(DEPTH_M - depth, 0.0)
        cost += TIGHT_COST * max(width * CELL_M - ROOMY_M, 0.0)
        belly = int(whole[low : a + inner + 1, rows].any(axis=1).sum()) - width
        cost += SLIP_COST * CELL_M * max(belly, 0)
        found.append((cost, a, b, tip, width))
    return found


def _contact_cost(solid: Cells, a: int, b: int, tip: int) -> float:
    """What a small contact costs: the fingers are flat, and hold little of a round thing."""
    inner, half = round(INSIDE_M / CELL_M), round(HALF_WIDTH_M / CELL_M)
    block = solid[_around(a, inner), _around(b, half), tip : tip + DEEP_CELLS]
    filled = block.any(axis=0)
    first = np.where(filled, block.argmax(axis=0), block.shape[0])
    last = np.where(filled, block[::-1].argmax(axis=0), block.shape[0])
    touched = min(int((side == side.min()).sum()) for side in (first, last))
    return CONTACT_COST_M * max(1.0 - touched / FLAT_CELLS, 0.0)


def _any_above(solid: Cells, low: int) -> Cells:
    """Which columns (A, B) hold anything from a cell upwards."""
    return np.asarray(np.logical_or.reduce(solid[:, :, low:], axis=2), bool)


def _around(cell: int, reach: int) -> slice:
    return slice(max(cell - reach, 0), cell + reach + 1)

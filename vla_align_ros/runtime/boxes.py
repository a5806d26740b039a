"""Where the end effector may be: inside the workspace, outside of every keep-out box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.motion import braking_speed

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
Vector = NDArray[np.float64]

# An arm that lags, or is measured with noise, gets this deep into a box that it slides along.
SLIDE_M = 0.01
ROUNDS = 8  # each only shortens; what is not settled by then stands still


def check_box(name: str, box: Box) -> None:
    """SafetyError unless the box is two finite corners (3,), the lowest and the highest."""
    corners = [np.asarray(corner, float) for corner in box]
    shapes = [corner.shape for corner in corners]
    if (
        shapes != [(3,), (3,)]
        or not all(np.isfinite(corner).all() for corner in corners)
        or not np.less(*corners).all()
    ):
        raise SafetyError(
            f"the robot's limit {name} cannot be used",
            got=repr(box),
            expected="(x, y, z) of the lowest and highest corner",
            fix="correct it in the robot's file (config/robots)",
        )


def confine(
    velocity: Vector,
    starts_m: Sequence[Vector],
    period_s: float,
    workspace_m: Box | None,
    keep_out_m: Sequence[Box],
    deceleration_m_s2: float | None = None,
) -> Vector:
    """Shorten the motion (3,) of one period so that it stays inside and outside, as below.

    It does so from each of the places (3,) where the end effector may be.
    """
    boxes = _stack(keep_out_m)
    for _ in range(ROUNDS):
        before = velocity
        for start_m in starts_m:
            if workspace_m is not None:
                velocity = stay_inside(velocity, start_m, period_s, workspace_m, deceleration_m_s2)
            velocity = stay_outside(velocity, start_m, period_s, boxes, deceleration_m_s2)
        if np.array_equal(before, velocity):
            return velocity
    return np.zeros(3)


def stay_inside(
    velocity: Vector,
    position_m: Vector,
    period_s: float,
    box: Box,
    deceleration_m_s2: float | None = None,
) -> Vector:
    """Slow each axis (3,) so that a period of motion ends in the box; outside, only inwards.

    With a deceleration an axis already slows down ahead of the side, so that it can brake there.
    """
    low, high = np.asarray(box, float)
    down = braking_speed(position_m - low, deceleration_m_s2, period_s)
    up = braking_speed(high - position_m, deceleration_m_s2, period_s)
    return np.minimum(np.maximum(velocity, -down), up)


def stay_outside(
    velocity: Vector,
    position_m: Vector,
    period_s: float,
    boxes: Sequence[Box] | NDArray[np.float64],
    deceleration_m_s2: float | None = None,
) -> Vector:
    """Shorten the motion (3,) of one period so that it enters no box; it slides along the side.

    With a deceleration it already slows down ahead of the side that it would enter by. Within a
    box nothing leads further in, and deeper than `SLIDE_M` only the motion out of it, by the
    nearest side, is left.
    """
    sides = _stack(boxes)
    slowed = np.array(velocity, np.float64)
    for _ in range(len(sides) + 1):
        start = 0
        while start < len(sides):
            found = _avoid(slowed, position_m, period_s, sides[start:], deceleration_m_s2)
            if found is None:
                break
            first, slowed = found
            start += first + 1
        if start == 0:
            return slowed
    return np.zeros(3)  # cornered between boxes


def _stack(boxes: Sequence[Box] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest and highest corners, (N, 2, 3)."""
    return np.asarray(boxes, np.float64).reshape(-1, 2, 3)


def _avoid(
    velocity: Vector,
    position: Vector,
    period_s: float,
    boxes: NDArray[np.float64],
    deceleration_m_s2: float | None,
) -> tuple[int, Vector] | None:
    """The first of the boxes (N, 2, 3) that slows the motion, and what it leaves; None if none.

    All of them at once: one after the other, eight take a millisecond of every tick.
    """
    offsets = boxes - position
    around = (offsets[:, 0] < 0.0) & (offsets[:, 1] > 0.0)
    with np.errstate(all="ignore"):
        times = offsets / velocity
    near, far = times.min(axis=1), times.max(axis=1)
    if not velocity.all():  # an axis that does not move is met everywhere or nowhere
        still = velocity == 0.0
        near = np.where(still, np.where(around, -np.inf, np.inf), near)
        far = np.where(still, np.inf, far)
    meets, leaves = near.max(axis=1), far.min(axis=1)
    within = around[:, 0] & around[:, 1] & around[:, 2]
    ahead = np.flatnonzero(within | ((meets < leaves) & (leaves > 0.0)))
    if not len(ahead):
        return None
    axes = near[ahead].argmax(axis=1)
    speeds = np.abs(velocity)[axes]
    distances = np.where(velocity[axes] > 0.0, offsets[ahead, 0, axes], -offsets[ahead, 1, axes])
    allowed = braking_speed(distances, deceleration_m_s2, period_s)
    inside = within[ahead]
    for index in np.flatnonzero(inside | (speeds > allowed)):
        box, axis = int(ahead[index]), int(axes[index])
        if not inside[index]:
            slowed = velocity.copy()
            slowed[axis] = math.copysign(allowed[index], slowed[axis])
            return box, slowed
        slowed = _leave(velocity, position, *boxes[box])
        if not np.array_equal(slowed, velocity):
            return box, slowed
    return None


def _leave(velocity: Vector, position: Vector, low: Vector, high: Vector) -> Vector:
    depths = np.concatenate([position - low, high - position])
    side = int(depths.argmin())
    axis, outwards = side % 3, -1.0 if side < 3 else 1.0
    slowed = np.array(velocity, np.float64)
    if slowed[axis] * outwards <= 0.0:
        slowed[axis] = 0.0
    if depths[side] > SLIDE_M:
        slowed[np.arange(3) != axis] = 0.0
    return slowed

"""Where the end effector may be: inside the workspace, outside of every keep-out box."""

from __future__ import annotations

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
    for _ in range(ROUNDS):
        before = velocity
        for start_m in starts_m:
            if workspace_m is not None:
                velocity = stay_inside(velocity, start_m, period_s, workspace_m, deceleration_m_s2)
            velocity = stay_outside(velocity, start_m, period_s, keep_out_m, deceleration_m_s2)
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
    down = [braking_speed(d, deceleration_m_s2, period_s) for d in position_m - low]
    up = [braking_speed(d, deceleration_m_s2, period_s) for d in high - position_m]
    return np.clip(velocity, -np.asarray(down), np.asarray(up))


def stay_outside(
    velocity: Vector,
    position_m: Vector,
    period_s: float,
    boxes: Sequence[Box],
    deceleration_m_s2: float | None = None,
) -> Vector:
    """Shorten the motion (3,) of one period so that it enters no box; it slides along the side.

    With a deceleration it already slows down ahead of the side that it would enter by. Within a
    box nothing leads further in, and deeper than `SLIDE_M` only the motion out of it, by the
    nearest side, is left.
    """
    slowed = np.array(velocity, np.float64)
    for _ in range(len(boxes) + 1):
        before = slowed.copy()
        for box in boxes:
            slowed = _avoid(slowed, position_m, period_s, np.asarray(box, float), deceleration_m_s2)
        if np.array_equal(before, slowed):
            return slowed
    return np.zeros(3)  # cornered between boxes


def _avoid(
    velocity: Vector,
    position: Vector,
    period_s: float,
    box: Vector,
    deceleration_m_s2: float | None,
) -> Vector:
    low, high = box
    if ((position > low) & (position < high)).all():
        return _leave(velocity, position, low, high)
    with np.errstate(all="ignore"):
        first, second = (low - position) / velocity, (high - position) / velocity
    near, far = np.minimum(first, second), np.maximum(first, second)
    still = velocity == 0.0
    beside = still & ((position <= low) | (position >= high))
    near, far = np.where(still, -np.inf, near), np.where(still, np.inf, far)
    if beside.any() or not near.max() < far.min() or far.min() <= 0.0:
        return velocity
    axis = int(near.argmax())
    distance = low[axis] - position[axis] if velocity[axis] > 0.0 else position[axis] - high[axis]
    speed = braking_speed(float(distance), deceleration_m_s2, period_s)
    slowed = np.array(velocity, np.float64)
    slowed[axis] = np.clip(slowed[axis], -speed, speed)
    return slowed


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

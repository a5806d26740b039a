"""The end effector stays in its workspace and out of every keep-out box, wherever it is sent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.boxes import Box, check_box, stay_inside, stay_outside

WORKSPACE: Box = ((0.1, -0.3, 0.0), (0.5, 0.3, 0.4))
SHELF: Box = ((0.2, -0.1, 0.0), (0.3, 0.1, 0.2))
POST: Box = ((0.35, 0.05, 0.0), (0.4, 0.15, 0.4))
PERIOD_S = 0.2
DEEP_M = 1e-9
points = arrays(np.float64, (3,), elements=st.floats(-0.2, 0.7))
velocities = arrays(np.float64, (3,), elements=st.floats(-3.0, 3.0))


def is_inside(point: np.ndarray, box: Box, margin: float = 0.0) -> bool:
    low, high = np.asarray(box)
    return bool(((point > low + margin) & (point < high - margin)).all())


def walk(position: np.ndarray, velocity: np.ndarray, period_s: float) -> np.ndarray:
    """Every tenth of the way."""
    return position + np.linspace(0, 1, 11)[:, None] * velocity * period_s


@given(position=points, velocity=velocities)
def test_from_within_the_workspace_nothing_leads_out(
    position: np.ndarray, velocity: np.ndarray
) -> None:
    low, high = np.asarray(WORKSPACE)
    inside = np.clip(position, low, high)
    slowed = stay_inside(velocity, inside, PERIOD_S, WORKSPACE, 2.0)
    end = inside + slowed * PERIOD_S
    assert ((end >= low - DEEP_M) & (end <= high + DEEP_M)).all()
    assert (np.abs(slowed) <= np.abs(velocity)).all() and (slowed * velocity >= 0).all()


@given(position=points, velocity=velocities)
def test_from_outside_the_workspace_only_inwards_is_left(
    position: np.ndarray, velocity: np.ndarray
) -> None:
    low, high = np.asarray(WORKSPACE)
    slowed = stay_inside(velocity, position, PERIOD_S, WORKSPACE)
    assert (slowed[position <= low] >= 0).all() and (slowed[position >= high] <= 0).all()


@given(position=points, velocity=velocities, dt=st.floats(0.01, 0.5))
def test_no_motion_enters_a_keep_out_box(
    position: np.ndarray, velocity: np.ndarray, dt: float
) -> None:
    boxes = (SHELF, POST)
    assume(not any(is_inside(position, box) for box in boxes))
    slowed = stay_outside(velocity, position, dt, boxes)
    for point in walk(position, slowed, dt):
        assert not any(is_inside(point, box, DEEP_M) for box in boxes)
    assert (np.abs(slowed) <= np.abs(velocity)).all() and (slowed * velocity >= 0).all()


@given(position=points, velocity=arrays(np.float64, (3,), elements=st.floats(-0.5, 0.5)))
def test_a_motion_that_meets_no_box_is_left_alone(
    position: np.ndarray, velocity: np.ndarray
) -> None:
    # Steps of the walk are 1 cm at most, so it cannot step over a box that is 1 cm larger.
    assume(not any(is_inside(p, SHELF, -0.01) for p in walk(position, velocity, PERIOD_S)))
    assert np.array_equal(stay_outside(velocity, position, PERIOD_S, [SHELF]), velocity)


def test_along_the_side_of_a_box_the_arm_slides() -> None:
    slowed = stay_outside(np.array([0.5, 0.0, -0.5]), np.array([0.15, 0.0, 0.1]), PERIOD_S, [SHELF])
    assert np.allclose(slowed, [0.25, 0.0, -0.5])


@given(velocity=velocities)
def test_from_within_a_box_only_the_nearest_way_out_is_left(velocity: np.ndarray) -> None:
    slowed = stay_outside(velocity, np.array([0.21, 0.0, 0.1]), PERIOD_S, [SHELF])
    assert np.array_equal(slowed, [min(velocity[0], 0.0), 0.0, 0.0])


@pytest.mark.parametrize(
    "box",
    [
        ((0, 0, 0), (1, 1)),
        ((0, 0, 0), (1, 0, 1)),
        ((0, 0, math.nan), (1, 1, 1)),
        ((0, 0, 0), (1, 1, math.inf)),
    ],
)
def test_a_box_that_is_none_is_refused(box: Box) -> None:
    with pytest.raises(SafetyError, match="lowest and highest corner"):
        check_box("workspace_m", box)

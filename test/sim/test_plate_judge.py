"""Success by geometry and contact: the same verdict as the published formula, in torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.sim.put_on_plate.judge import is_on, world_size_m

PLATE, CARROT = np.array([0.11, 0.11, 0.006]), np.array([0.118, 0.032, 0.041])
ON_TOP = np.array([0.0, 0.0, 0.02])


def test_a_carrot_on_the_middle_of_a_plate_succeeds_only_in_contact() -> None:
    assert is_on(ON_TOP, np.zeros(3), CARROT, PLATE, 0.4)
    assert not is_on(ON_TOP, np.zeros(3), CARROT, PLATE, 0.02)


@pytest.mark.parametrize(
    ("offset", "verdict"),
    [
        ((0.064, 0.0, 0.02), True),
        ((0.066, 0.0, 0.02), False),
        ((0.046, 0.046, 0.02), False),
        ((0.0, 0.0, 0.073), True),
        ((0.0, 0.0, 0.075), False),
        ((0.0, 0.0, -0.001), False),
    ],
)
def test_the_limits_are_the_published_ones(
    offset: tuple[float, float, float], verdict: bool
) -> None:
    assert is_on(offset, np.zeros(3), CARROT, PLATE, 1.0) is verdict


positions = st.tuples(*[st.floats(-0.1, 0.1)] * 3)


@given(positions, positions, st.floats(0, 0.1), st.floats(-3, 3))
def test_it_agrees_with_the_published_formula(
    source: tuple[float, ...], target: tuple[float, ...], force: float, yaw: float
) -> None:
    """Second implementation: corners of the boxes turned, extents by largest minus smallest."""
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]])
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    extents = [np.ptp((signs * size / 2) @ turn.T, axis=0) for size in (CARROT, PLATE)]
    np.testing.assert_allclose(world_size_m(CARROT, turn), extents[0], atol=1e-9)
    offset = np.subtract(source, target)
    near = np.linalg.norm(offset[:2]) <= extents[1].max() / 2 + 0.01
    low = offset[2] > 0 and offset[2] - extents[1][2] / 2 - extents[0][2] / 2 <= 0.05
    wanted = bool(near and low and force > 0.03)
    sizes = [world_size_m(size, turn) for size in (CARROT, PLATE)]
    assert is_on(source, target, *sizes, force) is wanted

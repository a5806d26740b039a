"""Grasps are free of collision, hold something, and are found for every published object."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vla_align_ros.errors import SimulationError
from vla_align_ros.sim.put_on_plate.grasps import (
    CELL_M,
    INSIDE_M,
    NARROWEST_M,
    Hull,
    choose_grasp,
    fill,
    rank_grasps,
)

TABLE_M = 0.87
FACES = np.array(
    [
        *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
        *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
    ]
)


def box(size: tuple[float, float, float], yaw: float = 0.0, at: tuple[float, ...] = (0, 0)) -> Hull:
    """A box that stands on the table."""
    corners = np.array(list(product((-0.5, 0.5), repeat=3))) * size
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    flat = corners[:, :2] @ turn.T + np.asarray(at, float)
    return np.c_[flat, corners[:, 2] + TABLE_M + size[2] / 2], FACES


def half_turn(angle: float) -> float:
    return float(abs((angle + np.pi / 2) % np.pi - np.pi / 2))


@given(
    st.floats(0.015, 0.035),
    st.floats(0.06, 0.14),
    st.floats(0.012, 0.05),
    st.floats(-3.0, 3.0),
)
@settings(max_examples=8)
def test_a_bar_is_grasped_across_its_middle(
    width: float, length: float, height: float, yaw: float
) -> None:
    grasp = choose_grasp([box((length, width, height), yaw, at=(-0.1, 0.05))], TABLE_M)
    assert np.hypot(*(grasp.tip_m[:2] - [-0.1, 0.05])) < 0.02
    assert half_turn(grasp.heading_rad - yaw - np.pi / 2) < 0.6
    assert NARROWEST_M <= grasp.width_m <= 2 * INSIDE_M
    assert TABLE_M < grasp.tip_m[2] < TABLE_M + height


def test_the_fingers_come_down_beside_the_thing_not_into_it() -> None:
    hulls = [box((0.10, 0.02, 0.03)), box((0.02, 0.08, 0.03), at=(0.04, 0.0))]
    for grasp in rank_grasps(hulls, TABLE_M)[:40]:
        points = fill(hulls)
        closing = np.array([np.cos(grasp.heading_rad), np.sin(grasp.heading_rad)])
        offsets = points[:, :2] - grasp.tip_m[:2]
        along, across = offsets @ closing, offsets @ [-closing[1], closing[0]]
        deep = points[:, 2] > grasp.tip_m[2] + CELL_M
        under = deep & (np.abs(across) < 0.010) & (np.abs(along) > INSIDE_M + 0.001)
        assert not (under & (np.abs(along) < 0.040)).any()
        assert (deep & (np.abs(across) < 0.016) & (np.abs(along) < INSIDE_M)).any()


def test_a_wide_thing_is_grasped_by_its_handle() -> None:
    body, handle = box((0.09, 0.09, 0.03)), box((0.07, 0.016, 0.02), at=(0.08, 0.0))
    grasp = choose_grasp([body, handle], TABLE_M)
    assert grasp.tip_m[0] > 0.05
    assert half_turn(grasp.heading_rad - np.pi / 2) < 0.4


def test_what_cannot_be_enclosed_is_one_clear_error() -> None:
    with pytest.raises(SimulationError, match="Nothing to grasp"):
        choose_grasp([box((0.005, 0.005, 0.04))], TABLE_M)


def test_the_corner_of_a_wide_thing_is_a_last_resort() -> None:
    wide, narrow = (choose_grasp([box((0.1, y, 0.03))], TABLE_M).cost_m for y in (0.1, 0.03))
    assert wide > 0.04 > narrow


def test_filling_gives_the_volume() -> None:
    size = (0.05, 0.04, 0.03)
    points: NDArray[np.float64] = fill([box(size, yaw=0.3)])
    volume = len(points) * 0.003**3
    assert volume == pytest.approx(np.prod(size), rel=0.15)

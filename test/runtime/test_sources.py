"""The latest sample of an input is as old as its worst clock says, and found again by its stamp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.contract.spec import StateSpec
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.runtime.sources import POSE_NAMES, RobotState, Source

seconds = st.floats(-5.0, 5.0)
POSE = np.array([0.1, 0.2, 0.3, 1.0, 2.0, 3.0])


def make_state(*names: str) -> RobotState:
    return RobotState.for_spec(StateSpec(names) if names else None)


def keep(*stamps: float, count: int = 10) -> Source[float]:
    source: Source[float] = Source(keep=count)
    for stamp_s in stamps:
        source.put(stamp_s, stamp_s=stamp_s, steady_s=0.0)
    return source


@given(by_stamp=seconds, by_arrival=seconds)
def test_an_age_is_of_the_clock_that_is_further_off_and_a_lag_of_the_later_one(
    by_stamp: float, by_arrival: float
) -> None:
    source: Source[str] = Source()
    source.put("x", stamp_s=-by_stamp, steady_s=-by_arrival)
    assert source.age_s(0.0, 0.0) in (by_stamp, by_arrival)
    assert abs(source.age_s(0.0, 0.0) or 0.0) == max(abs(by_stamp), abs(by_arrival))
    assert source.lag_s(0.0, 0.0) == max(by_stamp, by_arrival)


@given(stamps=st.lists(seconds, min_size=1, max_size=20), wanted=seconds)
def test_the_nearest_is_the_nearest_of_those_kept(stamps: list[float], wanted: float) -> None:
    stamps.sort()
    found = keep(*stamps, count=10).nearest(wanted)
    assert found is not None
    value, off_s = found
    assert off_s == abs(value - wanted) == min(abs(s - wanted) for s in stamps[-10:])


def test_what_a_clock_said_before_it_went_back_is_not_found_again() -> None:
    source = keep(10.0, 11.0, 3.0)
    assert source.nearest(10.0) == (3.0, 7.0)


def test_what_is_forgotten_has_no_age_and_is_nowhere_near() -> None:
    state = make_state("x", "gripper")
    state.pose.put(POSE, stamp_s=0.0, steady_s=0.0)
    state.gripper.put(0.5, stamp_s=0.0, steady_s=0.0)
    state.clear()
    for source in (state.pose, state.gripper):
        assert source.age_s(0.0, 0.0) is None and source.nearest(0.0) is None
        assert source.received == 1


def test_a_state_is_in_the_order_of_its_policy_and_as_far_off_as_its_furthest_part() -> None:
    state = make_state("gripper", "yaw", "x", "roll")
    state.pose.put(POSE, stamp_s=0.7, steady_s=0.0)
    assert state.vector_at(1.0) == (None, 0.0), "a part is missing"
    state.gripper.put(0.5, stamp_s=0.9, steady_s=0.0)
    values, off_s = state.vector_at(1.0)
    np.testing.assert_allclose(values, [0.5, 3.0, 0.1, 1.0])
    assert off_s == pytest.approx(0.3)


@pytest.mark.parametrize("furthest", ["pose", "gripper"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_state_is_as_old_as_the_part_that_is_furthest_off(furthest: str, sign: float) -> None:
    state = make_state("x", "gripper")
    state.pose.put(POSE, stamp_s=0.0, steady_s=0.0)
    assert state.age_s(0.1, 0.1) is None
    state.gripper.put(0.5, stamp_s=0.0, steady_s=0.0)
    getattr(state, furthest).stamp_s = -0.4 * sign
    assert state.age_s(0.0, 0.0) == pytest.approx(0.4 * sign)


def test_only_what_is_needed_ages() -> None:
    blind = make_state()
    assert blind.age_s(9.0, 9.0) == 0.0
    assert blind.age_s(9.0, 9.0, with_pose=True) is None
    blind.pose.put(POSE, stamp_s=8.0, steady_s=8.5)
    assert blind.age_s(9.0, 9.0, with_pose=True) == 1.0


def test_a_state_that_nobody_measures_here_is_refused() -> None:
    assert make_state(*POSE_NAMES, "gripper").needs_gripper
    with pytest.raises(ConfigurationError, match="joint_1"):
        make_state("x", "joint_1")

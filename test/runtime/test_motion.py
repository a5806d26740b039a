"""Commands change no faster than the robot's file allows, and still arrive where they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.motion import MotionLimiter, MotionLimits, Travel, braking_speed

SPEED, ACCELERATION, JERK = 0.4, 1.5, 20.0
ROUNDING = 1e-9
twists = arrays(np.float64, (6,), elements=st.floats(-3.0, 3.0))
periods = st.floats(0.005, 0.2)


def make_limiter(jerk: float | None = JERK, gripper: float | None = 2.0) -> MotionLimiter:
    limits = MotionLimits(ACCELERATION, 2 * ACCELERATION, jerk, jerk, gripper)
    return MotionLimiter(limits, linear_m_s=SPEED, angular_rad_s=2 * SPEED)


def follow(
    limiter: MotionLimiter, wanted: np.ndarray, dt_s: float, steps: int, gripper: float = 1.0
) -> np.ndarray:
    sent = []
    for _ in range(steps):
        twist, opening = limiter.limit(wanted, gripper, dt_s)
        limiter.remember(twist, opening, dt_s)
        sent.append(twist)
    return np.stack(sent)


@given(wanted=st.lists(st.tuples(twists, periods), min_size=1, max_size=30))
def test_speed_and_acceleration_never_exceed_their_limits(
    wanted: list[tuple[np.ndarray, float]],
) -> None:
    limiter, last = make_limiter(), np.zeros(6)
    for twist, dt_s in wanted:
        sent, gripper = limiter.limit(twist, 0.5, dt_s)
        limiter.remember(sent, gripper, dt_s)
        for part, scale in ((slice(0, 3), 1.0), (slice(3, 6), 2.0)):
            assert np.linalg.norm(sent[part]) <= SPEED * scale + ROUNDING
            change = np.linalg.norm(sent[part] - last[part]) / dt_s
            assert change <= ACCELERATION * scale + 1e-6
        last = sent


@given(wanted=st.lists(arrays(np.float64, (6,), elements=st.floats(-0.15, 0.15)), min_size=2))
def test_jerk_stays_within_its_limit_where_the_speed_limit_does_not_cut_in(
    wanted: list[np.ndarray],
) -> None:
    limiter, dt_s = make_limiter(), 0.02
    sent = np.concatenate([np.zeros((2, 6)), *(follow(limiter, w, dt_s, 3) for w in wanted)])
    jerk = np.diff(sent, n=2, axis=0) / dt_s**2
    for part in (slice(0, 3), slice(3, 6)):
        assert np.linalg.norm(jerk[:, part], axis=-1).max() <= JERK * (1 + 1e-6)


@settings(deadline=None)
@given(wanted=arrays(np.float64, (6,), elements=st.floats(-0.2, 0.2)), jerk=st.booleans())
def test_a_steady_wish_is_reached_without_overshoot(wanted: np.ndarray, jerk: bool) -> None:
    limiter = make_limiter(JERK if jerk else None)
    sent = follow(limiter, wanted, 0.02, 100)
    assert np.allclose(sent[-1], wanted, atol=2e-3)
    along = sent[:, :3] @ wanted[:3]
    assert (along <= wanted[:3] @ wanted[:3] * (1 + 1e-9) + 1e-6).all()


def test_without_limits_only_the_speed_is_held() -> None:
    limiter = MotionLimiter(MotionLimits(), linear_m_s=0.1, angular_rad_s=1.0)
    sent, gripper = limiter.limit(np.array([3.0, 0, 4.0, 0.1, 0, 0]), 0.7, 0.02)
    assert np.allclose(sent, [0.06, 0, 0.08, 0.1, 0, 0])
    assert gripper == 0.7


@pytest.mark.parametrize("steps", [2, 30])
def test_after_a_stop_the_arm_starts_from_rest_again(steps: int) -> None:
    limiter = make_limiter()
    follow(limiter, np.full(6, 0.1), 0.05, steps)  # still speeding up, or at its speed
    limiter.rest()
    assert not limiter.twist.any()
    limiter.twist[:] = 1.0
    assert not limiter.twist.any(), "nobody else changes what was commanded"
    sent, _ = limiter.limit(np.full(6, 0.1), 1.0, 0.02)
    assert np.linalg.norm(sent[:3]) <= JERK * 0.02**2 + ROUNDING


def test_after_a_side_braked_harder_than_the_limit_the_jerk_counts_from_the_limit() -> None:
    limiter, dt_s = make_limiter(), 0.02
    limiter.remember(np.full(6, 0.2), 1.0, dt_s)
    limiter.remember(np.zeros(6), 1.0, dt_s)
    sent, _ = limiter.limit(np.full(6, 0.1), 1.0, dt_s)
    assert np.linalg.norm(sent[:3]) <= ACCELERATION * dt_s + ROUNDING


@pytest.mark.parametrize(("stands", "first"), [(0.0, 0.1), (0.7, 0.8), (None, 1.0)])
def test_after_a_stop_the_gripper_starts_from_where_it_stands(
    stands: float | None, first: float
) -> None:
    limiter = make_limiter(gripper=2.0)
    limiter.remember(np.zeros(6), 0.4, 0.05)
    limiter.rest(stands)
    assert limiter.limit(np.zeros(6), 1.0, 0.05)[1] == pytest.approx(first)


@given(
    legs=st.lists(st.tuples(st.floats(-1, 1), periods), min_size=1, max_size=60),
    age_s=st.floats(0.0, 0.5),
)
def test_the_way_since_a_moment_is_what_was_commanded_since(
    legs: list[tuple[float, float]], age_s: float
) -> None:
    travel, ends = Travel(0.5), np.cumsum([dt_s for _, dt_s in legs])
    for speed, dt_s in legs:
        travel.note(np.array([speed, 0.0, 0.0]), dt_s)
    since_s, way_m = ends[-1] - age_s, 0.0
    for (speed, dt_s), end_s in zip(legs, ends, strict=True):
        way_m += speed * min(max(end_s - since_s, 0.0), dt_s)
    assert travel.within(age_s)[0] == pytest.approx(way_m, abs=1e-9)


def test_after_a_stand_the_whole_way_since_is_kept_again() -> None:
    travel, forward = Travel(0.5), np.array([1.0, 0.0, 0.0])
    for _ in range(9):
        travel.note(forward, 0.1)
    travel.clear()
    assert not travel.within(0.4).any()
    for _ in range(4):
        travel.note(forward, 0.1)
    assert travel.within(0.4)[0] == pytest.approx(0.4)


def test_the_gripper_moves_no_faster_than_its_rate() -> None:
    limiter = make_limiter(gripper=2.0)
    limiter.remember(np.zeros(6), 1.0, 0.05)
    openings = []
    for _ in range(12):
        twist, opening = limiter.limit(np.zeros(6), 0.0, 0.05)
        limiter.remember(twist, opening, 0.05)
        openings.append(opening)
    assert np.allclose(openings, [max(0.0, 1.0 - 0.1 * (k + 1)) for k in range(12)])


@given(a=st.floats(0.1, 5.0), b=st.floats(0.1, 5.0))
def test_tightening_never_loosens(a: float, b: float) -> None:
    one, other = MotionLimits(a, None, None, None, b), MotionLimits(b, a, None, None, None)
    both = one.tighten(other)
    assert both.linear_m_s2 == min(a, b)
    assert both.angular_rad_s2 == a and both.gripper_per_s == b
    assert both == other.tighten(one)


@given(distance=st.floats(0.0, 1.0), deceleration=st.floats(0.1, 5.0), period=periods)
def test_braking_ends_before_the_wall(distance: float, deceleration: float, period: float) -> None:
    speed = braking_speed(np.array([distance]), deceleration, period)[0]
    assert speed * period + speed**2 / (2 * deceleration) == pytest.approx(distance, abs=ROUNDING)
    assert braking_speed(np.array([-distance]), None, period) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"linear_m_s2": 0.0},
        {"angular_rad_s2": -1.0},
        {"gripper_per_s": math.nan},
        {"linear_m_s3": 5.0},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SafetyError, match="config/robots"):
        MotionLimits(**wrong)

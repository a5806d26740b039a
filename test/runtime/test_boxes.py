"""The end effector stays in its workspace and out of every keep-out box, wherever it is sent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.boxes import SLIDE_M, Box, check_box, confine, stay_inside, stay_outside
from vla_align_ros.runtime.motion import braking_speed

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


@given(starts=arrays(np.float64, (2, 3), elements=st.floats(-0.2, 0.7)), velocity=velocities)
def test_no_motion_enters_a_box_from_any_of_the_places_where_the_arm_may_be(
    starts: np.ndarray, velocity: np.ndarray
) -> None:
    boxes = (SHELF, POST)
    starts = np.clip(starts, *np.asarray(WORKSPACE))
    assume(not any(is_inside(start, box) for start in starts for box in boxes))
    slowed = confine(velocity, starts, PERIOD_S, WORKSPACE, boxes)
    for point in (point for start in starts for point in walk(start, slowed, PERIOD_S)):
        assert is_inside(point, WORKSPACE, -DEEP_M)
        assert not any(is_inside(point, box, DEEP_M) for box in boxes)
    assert (np.abs(slowed) <= np.abs(velocity)).all() and (slowed * velocity >= 0).all()


def test_what_the_second_place_slows_does_not_lead_into_a_box_from_the_first() -> None:
    ceiling: Box = ((0.0, -1.0, 0.0), (1.0, 1.0, 0.325))
    below: Box = ((0.415, -1.0, 0.0), (0.7, 1.0, 0.3))
    starts = np.array([[0.4, 0.0, 0.29], [0.4, 0.0, 0.32]])
    slowed = confine(np.array([0.2, 0.0, 0.2]), starts, PERIOD_S, ceiling, [below])
    assert not any(is_inside(point, below) for point in walk(starts[0], slowed, PERIOD_S))


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
def test_from_deep_within_a_box_only_the_nearest_way_out_is_left(velocity: np.ndarray) -> None:
    deep = np.array([0.2 + 1.1 * SLIDE_M, 0.0, 0.1])
    slowed = stay_outside(velocity, deep, PERIOD_S, [SHELF])
    assert np.array_equal(slowed, [min(velocity[0], 0.0), 0.0, 0.0])


@given(velocity=velocities, depth=st.floats(1e-9, 0.9))
def test_a_little_within_a_box_the_arm_slides_and_goes_no_deeper(
    velocity: np.ndarray, depth: float
) -> None:
    position = np.array([0.2 + depth * SLIDE_M, 0.0, 0.1])
    slowed = stay_outside(velocity, position, PERIOD_S, [SHELF])
    assert np.array_equal(slowed, [min(velocity[0], 0.0), *velocity[1:]])


def stay_outside_of_one(
    velocity: np.ndarray, position: np.ndarray, box: np.ndarray, deceleration: float | None
) -> np.ndarray:
    """The rule for a box, axis by axis."""
    low, high = box
    slowed = velocity.copy()
    if ((position > low) & (position < high)).all():
        depths = [*(position - low), *(high - position)]
        side = int(np.argmin(depths))
        axis = side % 3
        if (velocity[axis] <= 0) if side >= 3 else (velocity[axis] >= 0):
            slowed[axis] = 0.0
        if depths[side] > SLIDE_M:
            slowed[[other for other in range(3) if other != axis]] = 0.0
        return slowed
    near, far = np.full(3, -np.inf), np.full(3, np.inf)
    for axis in range(3):
        if velocity[axis] == 0.0:
            if not low[axis] < position[axis] < high[axis]:
                return slowed
            continue
        with np.errstate(over="ignore"):
            times = (np.array([low[axis], high[axis]]) - position[axis]) / velocity[axis]
        near[axis], far[axis] = min(times), max(times)
    if near.max() >= far.min() or far.min() <= 0.0:
        return slowed
    axis = int(near.argmax())
    towards = low[axis] - position[axis] if velocity[axis] > 0 else position[axis] - high[axis]
    speed = braking_speed(np.array([towards]), deceleration, PERIOD_S)[0]
    slowed[axis] = np.clip(velocity[axis], -speed, speed)
    return slowed


grid = st.integers(-4, 14).map(lambda k: k / 20)  # where sides, places and corners coincide


@given(
    position=arrays(np.float64, (3,), elements=st.one_of(st.floats(-0.2, 0.7), grid)),
    velocity=arrays(np.float64, (3,), elements=st.one_of(st.floats(-3.0, 3.0), grid)),
    corners=st.lists(arrays(np.float64, (3,), elements=grid), max_size=5),
    size=arrays(np.float64, (3,), elements=st.floats(0.05, 0.3)),
    deceleration=st.one_of(st.none(), st.floats(0.2, 3.0)),
)
def test_boxes_at_once_leave_what_they_leave_one_after_the_other(
    position: np.ndarray,
    velocity: np.ndarray,
    corners: list[np.ndarray],
    size: np.ndarray,
    deceleration: float | None,
) -> None:
    boxes = np.array([(low, low + size) for low in corners]).reshape(-1, 2, 3)
    wanted = velocity
    for _ in range(len(boxes) + 1):
        before = wanted
        for box in boxes:
            wanted = stay_outside_of_one(wanted, position, box, deceleration)
        if np.array_equal(before, wanted):
            break
    else:
        wanted = np.zeros(3)
    found = stay_outside(velocity, position, PERIOD_S, boxes, deceleration)
    assert np.array_equal(found, wanted)


def follow_along_the_shelf(lag_s: float, noise_m: float, seconds: float = 3.0) -> np.ndarray:
    """Positions of an arm that is asked to go into the shelf's side and along it at once."""
    shelf: Box = ((0.3, -1.0, 0.0), (0.6, 1.0, 0.3))
    rng, dt_s = np.random.default_rng(0), 0.005
    place, speed, places = np.array([0.2, -0.4, 0.15]), np.zeros(3), []
    for _ in range(round(seconds / 0.05)):
        measured = (place + rng.normal(0.0, noise_m, 3)).astype(np.float32).astype(float)
        asked = stay_outside(np.array([0.1, 0.1, 0.0]), measured, PERIOD_S, [shelf])
        for _ in range(10):
            speed = speed + (asked - speed) * (min(dt_s / lag_s, 1.0) if lag_s else 1.0)
            place = place + speed * dt_s
        places.append(place)
    return np.array(places)


@pytest.mark.parametrize(
    ("lag_s", "noise_m"), [(0.0, 0.0), (0.0, 1e-4), (0.05, 0.0), (0.05, 1e-4), (0.1, 1e-4)]
)
def test_an_arm_that_lags_and_is_measured_with_noise_slides_on(
    lag_s: float, noise_m: float
) -> None:
    places = follow_along_the_shelf(lag_s, noise_m)
    assert places[-1, 1] - places[0, 1] > 0.27  # of 0.3 m
    assert places[:, 0].max() < 0.3 + SLIDE_M


@pytest.mark.parametrize("place", ["workspace", "box"])
@given(
    deceleration=st.floats(0.2, 3.0),
    period_s=st.floats(0.05, 0.3),
    tick_s=st.floats(0.01, 0.05),
    speed=st.floats(0.05, 0.8),
)
def test_straight_towards_a_side_no_braking_is_harder_than_the_limit(
    place: str, deceleration: float, period_s: float, tick_s: float, speed: float
) -> None:
    ahead = 0.3
    inside: Box = ((-9.0, -1.0, 0.0), (ahead, 1.0, 1.0))
    wall: Box = ((ahead, -1.0, 0.0), (1.2, 1.0, 1.0))
    x, last = ahead - speed * (period_s + speed / deceleration), speed
    for _ in range(100):
        here = np.array([x, 0.0, 0.5])
        if place == "workspace":
            sent = stay_inside(np.array([speed, 0, 0]), here, period_s, inside, deceleration)[0]
        else:
            sent = stay_outside(np.array([speed, 0, 0]), here, period_s, [wall], deceleration)[0]
        assert (last - sent) / tick_s <= deceleration * (1 + 1e-6)
        last, x = sent, x + sent * tick_s
    assert x <= ahead + DEEP_M


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

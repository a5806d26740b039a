"""The watchdog trips once for each silence after motion, at its limit, and never otherwise."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.watchdog import CEASED, SILENT, Watchdog

RATE_HZ, TOLERANCE_S = 20.0, 0.02
LIMIT_S = 0.12

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["command", "beat"]),
        st.booleans(),
        st.floats(0.0, 0.3, allow_nan=False),
    ),
    max_size=40,
)


def make_watchdog() -> Watchdog:
    return Watchdog(RATE_HZ, TOLERANCE_S)


def feed(watchdog: Watchdog, kind: str, moving: bool, now_s: float) -> None:
    take = watchdog.take_command if kind == "command" else watchdog.take_heartbeat
    take(moving=moving, now_s=now_s)


def test_the_limit_is_two_periods_and_the_tolerance() -> None:
    assert make_watchdog().limit_s == pytest.approx(LIMIT_S)


@pytest.mark.parametrize(
    ("beats_hz", "odd"), [(20.0, False), (15.0, False), (28.0, False), (100.0, True), (5.0, True)]
)
def test_heartbeats_of_another_rate_than_the_limit_is_made_for_are_noticed(
    beats_hz: float, odd: bool
) -> None:
    watchdog = make_watchdog()
    for beat in range(20):
        watchdog.take_heartbeat(moving=False, now_s=beat / beats_hz)
        assert watchdog.odd_rate_hz() is None, "too few to judge by"
    watchdog.take_heartbeat(moving=False, now_s=20 / beats_hz)
    assert watchdog.odd_rate_hz() == (pytest.approx(beats_hz) if odd else None)


def test_a_few_late_or_additional_heartbeats_are_no_other_rate() -> None:
    watchdog = make_watchdog()
    for beat in range(60):
        late_s = 0.4 if beat % 5 == 0 else 0.0
        watchdog.take_heartbeat(moving=True, now_s=beat / RATE_HZ + late_s * 0.1)
        if beat % 8 == 0:  # the first command of a plan, between two ticks
            watchdog.take_heartbeat(moving=True, now_s=beat / RATE_HZ + late_s * 0.1 + 0.01)
    assert watchdog.odd_rate_hz() is None


def test_an_arm_that_never_moved_needs_no_stop() -> None:
    watchdog = make_watchdog()
    watchdog.take_command(moving=False, now_s=0.0)
    watchdog.take_heartbeat(moving=False, now_s=0.0)
    assert watchdog.deadline_s() is None
    assert watchdog.check(1e6) is None


def test_silence_after_motion_trips_once_and_keeps_its_reason() -> None:
    watchdog = make_watchdog()
    feed(watchdog, "command", True, 1.0)
    assert watchdog.check(1.0 + LIMIT_S - 1e-6) is None
    trip = watchdog.check(1.0 + LIMIT_S)
    assert trip is not None and trip.reason == SILENT
    assert trip.silence_s == pytest.approx(LIMIT_S)
    assert watchdog.check(2.0) is None, "one zero, then silence"
    feed(watchdog, "command", True, 3.0)
    feed(watchdog, "beat", False, 3.1)
    assert watchdog.check(3.0 + LIMIT_S).reason == CEASED  # type: ignore[union-attr]
    assert watchdog.first is trip, "the first cause is kept"
    assert watchdog.trips == 2
    watchdog.reset()
    assert watchdog.first is None


def test_a_zero_that_never_came_is_sent_although_the_node_lives() -> None:
    watchdog = make_watchdog()
    feed(watchdog, "command", True, 1.0)
    for k in range(1, 10):
        feed(watchdog, "beat", False, 1.0 + 0.05 * k)
    trip = watchdog.check(1.45)
    assert trip is not None and trip.reason == CEASED


@given(EVENTS)
def test_no_motion_outlives_its_limit_and_no_stop_comes_early(
    events: list[tuple[str, bool, float]],
) -> None:
    """Woken at every deadline, as the node is, it trips exactly where silence reaches the limit."""
    watchdog, now_s = make_watchdog(), 0.0
    last: dict[str, float] = {}
    stands = foreign = False
    for kind, moving, wait_s in events:
        until_s = now_s + wait_s
        deadline_s = watchdog.deadline_s()
        expected_s = min(last.values()) + watchdog.limit_s if last else None
        assert deadline_s == expected_s
        if deadline_s is not None and deadline_s <= until_s:
            assert watchdog.check(math.nextafter(deadline_s, -math.inf)) is None
            trip = watchdog.check(deadline_s)
            assert trip is not None
            assert trip.silence_s == pytest.approx(watchdog.limit_s)
            last.clear()
        now_s = until_s
        feed(watchdog, kind, moving, now_s)
        if moving:
            last[kind] = now_s
        else:
            last.pop(kind, None)
        if kind == "command":
            foreign = stands
        else:
            if foreign and stands and not moving:
                last.pop("command", None)
            stands, foreign = not moving, foreign and not moving
        assert watchdog.moving == bool(last)


def test_a_person_may_drive_while_the_policy_says_that_it_stands() -> None:
    """One twist for each key, as keyboards send them, on the topic that the policy has too."""
    watchdog = make_watchdog()
    feed(watchdog, "beat", True, 0.9)
    feed(watchdog, "command", True, 0.9)
    feed(watchdog, "beat", False, 0.95)
    feed(watchdog, "command", False, 0.95)
    for k in range(40):
        now_s = 1.0 + 0.05 * k
        feed(watchdog, "beat", False, now_s)
        assert watchdog.check(now_s) is None
        if k % 10 == 0:
            feed(watchdog, "command", True, now_s + 0.01)
    assert watchdog.trips == 0


@given(st.lists(st.booleans(), max_size=6), st.booleans())
def test_a_policy_that_dies_of_its_first_command_is_noticed(
    before: list[bool], beat_first: bool
) -> None:
    """However it stood before, and whichever of its two last messages is heard first."""
    watchdog = make_watchdog()
    now_s = 0.0
    for person in before:
        now_s += 0.05
        feed(watchdog, "beat", False, now_s)
        if person:
            feed(watchdog, "command", True, now_s + 0.01)
    now_s += 0.05
    for kind in ("beat", "command") if beat_first else ("command", "beat"):
        feed(watchdog, kind, True, now_s)
    assert watchdog.check(now_s + LIMIT_S - 1e-6) is None
    assert watchdog.check(now_s + LIMIT_S + 1e-6) is not None


def test_a_command_without_any_heartbeat_after_it_is_not_left_alone() -> None:
    watchdog = make_watchdog()
    feed(watchdog, "beat", False, 1.0)
    feed(watchdog, "command", True, 1.05)
    trip = watchdog.check(1.05 + LIMIT_S + 1e-6)
    assert trip is not None and trip.reason == SILENT


@pytest.mark.parametrize(("age_s", "reason"), [(0.074, CEASED), (0.076, SILENT)])
def test_a_node_lives_whose_heartbeat_is_younger_than_a_period_and_a_half(
    age_s: float, reason: str
) -> None:
    watchdog = make_watchdog()
    feed(watchdog, "command", True, 1.0)
    feed(watchdog, "beat", False, 1.0 + LIMIT_S - age_s)
    assert watchdog.check(1.0 + LIMIT_S).reason == reason  # type: ignore[union-attr]


def test_heartbeats_alone_do_not_pass_for_commands() -> None:
    watchdog = make_watchdog()
    feed(watchdog, "beat", False, 1.0)
    feed(watchdog, "command", True, 1.05)
    for k in range(3):
        feed(watchdog, "beat", True, 1.05 + 0.05 * k)
    assert watchdog.check(1.05 + LIMIT_S + 1e-6).reason == CEASED  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rate_hz", "tolerance_s"),
    [(0.0, 0.02), (-1.0, 0.02), (math.nan, 0.02), (math.inf, 0.02), (20.0, -0.1), (20.0, math.nan)],
)
def test_a_limit_that_is_none_is_refused(rate_hz: float, tolerance_s: float) -> None:
    with pytest.raises(SafetyError, match="no time limit"):
        Watchdog(rate_hz, tolerance_s)

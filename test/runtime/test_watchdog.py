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
        assert watchdog.moving == bool(last)


@pytest.mark.parametrize(
    ("rate_hz", "tolerance_s"),
    [(0.0, 0.02), (-1.0, 0.02), (math.nan, 0.02), (math.inf, 0.02), (20.0, -0.1), (20.0, math.nan)],
)
def test_a_limit_that_is_none_is_refused(rate_hz: float, tolerance_s: float) -> None:
    with pytest.raises(SafetyError, match="no time limit"):
        Watchdog(rate_hz, tolerance_s)

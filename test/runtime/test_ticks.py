"""Ticks after a gap are overrun, for as long as messages may wait that nobody has read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.runtime.ticks import READING_PERIODS, Ticks
from vla_align_ros.runtime.watchdog import PERIODS

PERIOD_S = 0.05
gaps = st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=40)


def begun(at_s: float = 100.0) -> Ticks:
    ticks = Ticks(PERIOD_S)
    ticks.begin(at_s)
    return ticks


def test_ticks_in_time_are_none_and_say_that_everything_was_read() -> None:
    ticks, now_s = begun(), 100.0
    for gap_s in (0.05, 0.099, 0.001, 0.05):
        now_s += gap_s
        tick = ticks.take(now_s)
        assert tick.overrun_s is None and tick.read_s == now_s
        assert tick.since_s == pytest.approx(gap_s)


def test_a_late_tick_tells_the_gap_and_until_when_messages_were_read() -> None:
    ticks = begun()
    ticks.take(100.05)
    late = ticks.take(101.1)
    assert late.overrun_s == pytest.approx(1.05) and late.read_s == 100.05


def test_ticks_that_follow_at_once_are_overrun_too_and_the_next_in_its_time_is_not() -> None:
    ticks = begun()
    ticks.take(101.0)
    soon = ticks.take(101.024)
    assert soon.overrun_s == pytest.approx(1.0) and soon.read_s == 100.0
    assert ticks.take(101.05).overrun_s is None


def test_a_new_beginning_forgets_the_gap_before_it() -> None:
    ticks = begun()
    ticks.take(105.0)
    ticks.begin(105.001)
    assert ticks.take(105.01).overrun_s is None


@given(gaps=gaps)
def test_a_tick_is_overrun_if_and_only_if_a_gap_ended_less_than_half_a_period_ago(
    gaps: list[float],
) -> None:
    ticks, now_s, last_s, woke_s, read_s = begun(), 100.0, 100.0, float("-inf"), 100.0
    for gap_s in gaps:
        now_s += gap_s
        tick = ticks.take(now_s)
        if now_s - last_s > PERIODS * PERIOD_S:
            woke_s = now_s
        overrun = now_s - woke_s < READING_PERIODS * PERIOD_S
        read_s = read_s if overrun else now_s
        assert ((tick.overrun_s is not None), tick.read_s) == (overrun, read_s)
        last_s = now_s

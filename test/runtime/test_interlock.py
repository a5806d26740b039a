"""What a person decides outranks the policy, in whatever order it is decided."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.interlock import Interlock, InterlockConfig
from vla_align_ros.runtime.stops import Hold, Reason

STEPS = ("arm", "disarm", "stop", "reset", "take", "give", "press", "release", "watch", "load")


@given(steps=st.lists(st.sampled_from(STEPS)), start=st.booleans())
def test_after_any_sequence_the_arm_moves_only_if_everybody_agrees(
    steps: list[str], start: bool
) -> None:
    lock = Interlock(InterlockConfig(start_armed=start, dead_man_s=1.0, watchdog_timeout_s=1.0))
    armed, stopped, taken, held, watched = start, False, False, False, False
    for step in steps:
        if step == "arm":
            if stopped:
                with pytest.raises(SafetyError):
                    lock.arm()
            else:
                lock.arm()
                armed = True
        elif step == "disarm":
            lock.disarm()
            armed = False
        elif step == "stop":
            assert lock.stop(Hold(Reason.STOPPED, "button")) is not stopped
            armed, stopped = False, True
        elif step == "reset":
            assert lock.reset() is stopped
            stopped = False
        elif step in ("take", "give"):
            assert lock.take_over("joystick" if step == "take" else None) is (
                taken != (step == "take")
            )
            taken = step == "take"
        elif step == "load":
            lock.forget_arming()
            armed = armed and start
        elif step == "watch":
            lock.note_watched(10.0)
            watched = True
        else:
            assert lock.press_dead_man(step == "press", 10.0) is (held and step == "release")
            held = step == "press"
    hold = lock.check(10.5)
    expected = (
        Reason.STOPPED
        if stopped
        else Reason.DISARMED
        if not armed
        else Reason.TAKEOVER
        if taken
        else Reason.DEAD_MAN
        if not held
        else Reason.UNWATCHED
        if not watched
        else None
    )
    assert (None if hold is None else hold.reason) == expected


def test_the_first_cause_of_a_stop_is_kept() -> None:
    lock = Interlock(InterlockConfig(start_armed=True))
    assert lock.stop(Hold(Reason.STOPPED, "first"))
    assert not lock.stop(Hold(Reason.STOPPED, "second"))
    assert lock.stopped == Hold(Reason.STOPPED, "first")


def test_who_drives_is_known_whatever_else_is_against_motion() -> None:
    lock = Interlock(InterlockConfig())
    assert not lock.taken_over
    assert lock.take_over("by hand") and not lock.take_over("by joystick")
    lock.stop(Hold(Reason.STOPPED, "first"))
    assert lock.taken_over
    assert lock.take_over(None) and not lock.taken_over


@given(age=st.floats(-10, 10))
def test_a_dead_man_switch_is_believed_for_its_time_alone(age: float) -> None:
    lock = Interlock(InterlockConfig(start_armed=True, dead_man_s=0.5))
    lock.press_dead_man(True, 100.0)
    hold = lock.check(100.0 + age)
    assert (hold is None) == (0 <= 100.0 + age - 100.0 <= 0.5)


@given(age=st.floats(-10, 10))
def test_a_watchdog_is_believed_for_its_time_alone(age: float) -> None:
    lock = Interlock(InterlockConfig(start_armed=True, watchdog_timeout_s=0.5))
    assert lock.check(100.0) == Hold(Reason.UNWATCHED, "no watchdog heard")
    lock.note_watched(100.0)
    hold = lock.check(100.0 + age)
    assert (hold is None) == (0 <= 100.0 + age - 100.0 <= 0.5)


@pytest.mark.parametrize(("read_s", "believed"), [(100.5, True), (100.51, False), (99.0, True)])
def test_silence_counts_until_messages_were_read(read_s: float, believed: bool) -> None:
    lock = Interlock(InterlockConfig(start_armed=True, dead_man_s=0.5, watchdog_timeout_s=0.5))
    lock.press_dead_man(True, 100.0)
    lock.note_watched(100.0)
    assert lock.check(101.0) is not None
    assert (lock.check(101.0, read_s) is None) == believed
    assert lock.check(99.9, 99.0) is not None, "a word from the future is none"


def test_nobody_need_watch_or_hold_where_nobody_is_asked_for() -> None:
    assert Interlock(InterlockConfig(start_armed=True)).check(100.0) is None


def test_a_switch_that_is_let_go_holds_although_nobody_asked_for_one() -> None:
    lock = Interlock(InterlockConfig(start_armed=True))
    assert not lock.press_dead_man(True, 10.0)
    assert lock.check(1e6) is None, "its silence is nothing where no time is set"
    assert lock.press_dead_man(False, 20.0)
    hold = lock.check(1e6)
    assert hold is not None and hold.reason is Reason.DEAD_MAN and "let go" in hold.detail
    lock.press_dead_man(True, 30.0)
    assert lock.check(1e6) is None


@pytest.mark.parametrize("name", ["dead_man_s", "watchdog_timeout_s"])
@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_a_useless_time_is_refused(name: str, wrong: float) -> None:
    with pytest.raises(SafetyError, match=name):
        InterlockConfig(**{name: wrong})

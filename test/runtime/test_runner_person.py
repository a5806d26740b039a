"""What a person decides reaches the arm at once, and outlives every plan."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from rig import SAY, MakeRig, Rig, Waiting

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.interlock import InterlockConfig
from vla_align_ros.runtime.stops import Hold, Reason

STOP = Hold(Reason.STOPPED, "the red button")


def reset_and_arm(rig: Rig) -> None:
    assert rig.runner.interlock.reset()
    rig.runner.interlock.arm()


def hold_switch(rig: Rig) -> None:
    rig.runner.interlock.press_dead_man(True, rig.steady_s)


@pytest.mark.parametrize(
    ("forbid", "permit", "reason"),
    [
        (
            lambda rig: rig.runner.interlock.disarm(),
            lambda rig: rig.runner.interlock.arm(),
            Reason.DISARMED,
        ),
        (lambda rig: rig.runner.interlock.stop(STOP), reset_and_arm, Reason.STOPPED),
        (
            lambda rig: rig.runner.interlock.take_over("joystick"),
            lambda rig: rig.runner.interlock.take_over(None),
            Reason.TAKEOVER,
        ),
        (
            lambda rig: rig.runner.interlock.press_dead_man(False, rig.steady_s),
            hold_switch,
            Reason.DEAD_MAN,
        ),
        (lambda rig: rig.pass_time(0.21), hold_switch, Reason.DEAD_MAN),
    ],
    ids=["disarmed", "stopped", "taken over", "switch let go", "switch not repeated"],
)
def test_what_a_person_forbids_stops_at_once_and_goes_on_by_a_new_plan_alone(
    make_rig: MakeRig, forbid: Callable[[Rig], object], permit: Callable[[Rig], object], reason: str
) -> None:
    rig = make_rig(interlock=InterlockConfig(start_armed=True, dead_man_s=0.2))
    rig.runner.set_instruction(SAY)
    hold_switch(rig)
    rig.runner.tick()
    rig.feed()
    assert rig.runner.tick().command is not None
    forbid(rig)
    step = rig.runner.tick()
    assert step.stop and step.hold is not None and step.hold.reason is reason
    rig.pass_time(0.05)
    rig.feed()  # of what the person is just changing
    assert rig.hold_reason() is reason
    rig.pass_time(0.05)
    permit(rig)
    hold_switch(rig)
    assert rig.hold_reason() is Reason.PLANNING, "moved by a plan from before"
    rig.pass_time(0.01)
    rig.feed()
    assert rig.runner.tick().command is not None


def test_an_arm_that_nobody_armed_stands_still(make_rig: MakeRig) -> None:
    rig = make_rig(interlock=InterlockConfig())
    rig.runner.set_instruction(SAY)
    rig.feed()
    assert rig.hold_reason() is Reason.DISARMED


def test_a_stop_is_latched_with_its_first_cause_until_it_is_reset(make_rig: MakeRig) -> None:
    rig = make_rig()
    assert rig.runner.interlock.stop(STOP)
    assert not rig.runner.interlock.stop(Hold(Reason.STOPPED, "another button"))
    assert rig.runner.tick().hold == STOP
    with pytest.raises(SafetyError, match="the red button"):
        rig.runner.interlock.arm()
    assert rig.runner.interlock.reset()
    assert rig.hold_reason() is Reason.DISARMED, "a reset alone must not move the arm"


def test_a_plan_that_was_being_made_during_a_stop_is_refused(make_rig: MakeRig) -> None:
    engine = Waiting()
    rig = make_rig(engine)
    rig.begin(engine)
    rig.pass_time(0.1)
    rig.runner.interlock.stop(STOP)
    assert rig.hold_reason() is Reason.STOPPED
    engine.go.set()
    reset_and_arm(rig)
    for _ in range(20):
        time.sleep(0.01)
        assert rig.hold_reason() in (Reason.PLANNING, Reason.STALE_IMAGE)


def held_up(make_rig: MakeRig) -> Rig:
    """A node that moved the arm, then did nothing for a second; by now a fresh plan is there."""
    rig = make_rig(
        interlock=InterlockConfig(start_armed=True, watchdog_timeout_s=0.5), command_period_s=0.05
    )
    rig.runner.interlock.note_watched(rig.steady_s)
    rig.runner.set_instruction(SAY)
    rig.runner.tick()  # from now on it is permitted, and plans count
    rig.feed()
    assert rig.runner.tick().command is not None
    rig.pass_time(1.05)
    rig.feed()
    return rig


def test_a_node_that_was_held_up_reads_who_stopped_it_before_anything_moves(
    make_rig: MakeRig,
) -> None:
    rig = held_up(make_rig)
    step = rig.runner.tick()
    assert step.hold is not None and step.stop and step.hold.reason is Reason.OVERRUN
    assert "1.05 s" in step.hold.detail
    rig.runner.interlock.stop(STOP)  # it was there, and unread
    rig.pass_time(0.05)
    assert rig.hold_reason() is Reason.STOPPED


def test_a_node_that_was_held_up_does_not_blame_the_watchdog_whose_word_waits(
    make_rig: MakeRig,
) -> None:
    rig = held_up(make_rig)
    assert rig.hold_reason() is Reason.OVERRUN
    rig.runner.interlock.note_watched(rig.steady_s)
    rig.pass_time(0.03)
    assert rig.runner.tick().command is not None, "the plan was made in time and holds"


def test_a_watchdog_that_is_silent_after_a_node_was_held_up_is_missed(make_rig: MakeRig) -> None:
    rig = held_up(make_rig)
    assert rig.hold_reason() is Reason.OVERRUN
    rig.pass_time(0.03)
    assert rig.hold_reason() is Reason.UNWATCHED

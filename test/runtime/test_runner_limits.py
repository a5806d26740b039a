"""Ages and limits of motion hold from tick to tick."""

from __future__ import annotations

import numpy as np
import pytest
from rig import PICTURE, SAY, MakeRig
from sample_policy import HORIZON

from vla_align_ros.runtime.motion import MotionLimits
from vla_align_ros.runtime.safety import Limits, Timeouts
from vla_align_ros.runtime.stops import Reason


def test_words_and_actions_that_are_too_old_are_not_followed(make_rig: MakeRig) -> None:
    rig = make_rig(timeouts=Timeouts(image_s=9.0, state_s=9.0, action_s=0.3, instruction_s=2.0))
    rig.runner.set_instruction(SAY)
    rig.feed()
    rig.pass_time(0.29)
    assert rig.runner.tick().command is not None
    rig.pass_time(0.02)
    assert rig.hold_reason() is Reason.STALE_ACTION
    rig.pass_time(2.0)
    assert rig.hold_reason() is Reason.STALE_INSTRUCTION
    assert not rig.runner.set_instruction(SAY), "the same words again are no change"
    assert rig.hold_reason() is not Reason.STALE_INSTRUCTION


def test_after_a_takeover_the_gripper_starts_from_where_the_person_left_it(
    make_rig: MakeRig,
) -> None:
    wanted = np.zeros((HORIZON, 7))
    wanted[:, 6] = 1.0
    rig = make_rig(wanted, limits=Limits(10.0, 50.0, motion=MotionLimits(gripper_per_s=1.0)))
    assert rig.runner.wants_gripper
    rig.runner.set_instruction(SAY)
    rig.feed()
    command = rig.command()
    assert command.gripper == 1.0
    rig.runner.interlock.take_over("joystick")
    assert rig.hold_reason() is Reason.TAKEOVER
    rig.runner.take_gripper(0.2, rig.now_s)  # the person closes it
    rig.pass_time(0.1)
    rig.runner.interlock.take_over(None)
    assert rig.hold_reason() is Reason.PLANNING
    rig.pass_time(0.1)
    rig.feed()
    command = rig.command()
    assert command.gripper == pytest.approx(0.3), "a tenth of a second from where it is"


def test_where_the_pose_stops_coming_the_arm_is_not_sent_out_of_its_workspace(
    make_rig: MakeRig,
) -> None:
    down = np.zeros((HORIZON, 7))
    down[:, 2] = -3.0
    box = ((0.0, -1.0, 0.05), (1.0, 1.0, 1.0))
    rig = make_rig(
        down,
        limits=Limits(0.25, 50.0, hold_factor=100.0, workspace_m=box),
        command_period_s=0.05,
    )
    rig.runner.set_instruction(SAY)
    rig.feed()  # at 0.2 m, for the last time
    height_m, reason = 0.2, None
    while reason is None:
        step = rig.runner.tick()
        height_m += 0.05 * (0.0 if step.command is None else step.command.twist[2])
        reason = None if step.hold is None else step.hold.reason
        rig.pass_time(0.05)
        rig.runner.take_image(lambda: PICTURE, rig.now_s)
    assert reason is Reason.STALE_STATE
    assert 0.05 - 1e-9 <= height_m < 0.1


def test_the_arm_speeds_up_no_faster_than_its_limits(make_rig: MakeRig) -> None:
    motion = MotionLimits(linear_m_s2=0.5)
    go = np.zeros((HORIZON, 7))
    go[:, 0] = 3.0
    rig = make_rig(go, limits=Limits(10.0, 50.0, hold_factor=100.0, motion=motion))
    rig.runner.set_instruction(SAY)
    rig.feed()
    speeds = []
    for _ in range(5):
        rig.pass_time(0.02)
        command = rig.command()
        assert command.clamped
        speeds.append(command.twist[0])
    assert np.allclose(np.diff([0.0, *speeds]), 0.01, rtol=1e-3)


def test_after_a_deactivation_the_arm_starts_from_rest_and_its_gripper_from_where_it_is(
    make_rig: MakeRig,
) -> None:
    motion = MotionLimits(linear_m_s2=0.5, gripper_per_s=0.5)
    go = np.zeros((HORIZON, 7))
    go[:, 0], go[:, 6] = 3.0, 0.0
    rig = make_rig(go, limits=Limits(10.0, 50.0, hold_factor=100.0, motion=motion))
    for _ in range(2):
        rig.runner.set_instruction(SAY)
        rig.pass_time(0.02)
        rig.feed()  # with an open gripper
        command = rig.command()
        assert command.twist[0] == pytest.approx(0.5 * 0.02, rel=1e-3)
        assert command.gripper == pytest.approx(1.0 - 0.5 * 0.02)
        for _ in range(10):
            rig.pass_time(0.02)
            rig.command()
        rig.runner.deactivate()
        rig.pass_time(60.0)
        rig.runner.activate()

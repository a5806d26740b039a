"""Nothing passes the gate but finite commands within limits, from fresh inputs, with words."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.contract.motion_limits import MOTION_LIMITS, check_motion_limits
from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.chunks import ScheduledAction
from vla_align_ros.runtime.motion import MotionLimits
from vla_align_ros.runtime.safety import (
    LONGEST_TICK_S,
    Command,
    Limits,
    SafetyGate,
    Situation,
    Timeouts,
)
from vla_align_ros.runtime.stops import Hold, Reason, StopRecord

PERIOD_S = 0.2
BOX = ((0.1, -0.3, 0.0), (0.5, 0.3, 0.4))
LIMITS = Limits(linear_m_s=0.4, angular_rad_s=2.0, hold_factor=2.0)
GATE = SafetyGate(LIMITS, Timeouts(image_s=0.5, state_s=0.3))
BOXED = SafetyGate(replace(LIMITS, workspace_m=BOX), Timeouts(image_s=0.5, state_s=0.3))

number = st.floats(-0.05, 0.05) | st.floats(-1e3, 1e3)
any_float = number | st.floats(allow_nan=True, allow_infinity=True)
usable = st.tuples(*[st.floats(-0.09, 0.09)] * 3, *[st.floats(-0.4, 0.4)] * 3, st.floats(-9, 9))
actions = usable.map(np.array) | st.lists(any_float, min_size=7, max_size=7).map(np.array)
inside = st.tuples(*[st.floats(low, high) for low, high in zip(*BOX, strict=True)])
positions = (inside | st.tuples(*[st.floats(-1, 1)] * 3)).map(np.array)
maybe_age = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.floats(-1, 1)


def plan(action: object) -> ScheduledAction:
    return ScheduledAction(np.asarray(action, float), PERIOD_S, "go", 0.0, 0, 1)


GOOD = Situation(
    instruction="go",
    image_age_s=0.1,
    action=plan([0.02, 0, 0, 0, 0, 0.1, 1.0]),
    plans=1,
    state_age_s=0.1,
    position_m=np.array([0.3, 0.0, 0.2]),
)


def test_a_good_situation_gives_the_velocity_of_the_delta() -> None:
    command = GATE.check(GOOD)
    assert isinstance(command, Command)
    np.testing.assert_allclose(command.twist, [0.1, 0, 0, 0, 0, 0.5])
    assert command.gripper == 1.0
    assert not command.clamped


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"active": False}, Reason.INACTIVE),
        ({"instruction": None}, Reason.NO_INSTRUCTION),
        ({"image_age_s": None}, Reason.STALE_IMAGE),
        ({"image_age_s": 0.51}, Reason.STALE_IMAGE),
        ({"image_age_s": -0.51}, Reason.STALE_IMAGE),
        ({"image_age_s": math.nan}, Reason.STALE_IMAGE),
        ({"state_needed": True, "state_age_s": None}, Reason.STALE_STATE),
        ({"state_needed": True, "state_age_s": 0.31}, Reason.STALE_STATE),
        ({"fault": Hold(Reason.INFERENCE_ERROR, "boom")}, Reason.INFERENCE_ERROR),
        ({"action": None, "plans": 0}, Reason.PLANNING),
        ({"action": None}, Reason.CHUNK_EXHAUSTED),
        ({"action": None, "ahead_s": 0.25}, Reason.CHUNK_EXHAUSTED),
        ({"action": plan([math.nan] * 7)}, Reason.NON_FINITE),
        ({"action": plan([0, 0, 0, 0, 0, 0, math.inf])}, Reason.NON_FINITE),
        ({"action": plan([0.17, 0, 0, 0, 0, 0, 0])}, Reason.OUT_OF_LIMITS),
        ({"action": plan([0, 0, 0, 0.9, 0, 0, 0])}, Reason.OUT_OF_LIMITS),
        ({"action": plan([1e300, 1e300, 0, 0, 0, 0, 0])}, Reason.OUT_OF_LIMITS),
        ({"action": plan([0.1, 0.1, 0.1, 0, 0, 0, 0])}, Reason.OUT_OF_LIMITS),
        ({"active": False, "fault": Hold(Reason.INFERENCE_ERROR, "boom")}, Reason.INACTIVE),
        ({"action": None, "fault": Hold(Reason.INFERENCE_ERROR, "")}, Reason.INFERENCE_ERROR),
    ],
)
def test_each_cause_has_its_reason(change: dict[str, object], reason: Reason) -> None:
    hold = GATE.check(replace(GOOD, **change))  # type: ignore[arg-type]
    assert isinstance(hold, Hold)
    assert hold.reason is reason


def test_state_counts_only_where_something_needs_it() -> None:
    blind = replace(GOOD, state_age_s=None, position_m=None)
    assert isinstance(GATE.check(blind), Command)
    nowhere = replace(GOOD, position_m=np.array([0.3, math.nan, 0.2]))
    for situation in (
        blind,
        nowhere,
        replace(blind, state_age_s=0.1),
        replace(GOOD, state_age_s=9.0),
    ):
        hold = BOXED.check(situation)
        assert isinstance(hold, Hold)
        assert hold.reason is Reason.STALE_STATE


@given(action=actions, position=positions)
def test_no_command_breaks_a_limit(action: np.ndarray, position: np.ndarray) -> None:
    decision = BOXED.check(replace(GOOD, action=plan(action), position_m=position))
    if isinstance(decision, Hold):
        assert decision.reason in (Reason.NON_FINITE, Reason.OUT_OF_LIMITS)
        return
    assert np.isfinite(decision.twist).all()
    assert 0.0 <= decision.gripper <= 1.0
    assert np.linalg.norm(decision.twist[:3]) <= LIMITS.linear_m_s * (1 + 1e-9)
    assert np.linalg.norm(decision.twist[3:]) <= LIMITS.angular_rad_s * (1 + 1e-9)
    wanted = action[:6] / PERIOD_S
    assert (np.abs(decision.twist) <= np.abs(wanted) + 1e-12).all(), "faster than asked"
    assert (decision.twist * wanted >= 0).all(), "against what was asked"
    reached = position + decision.twist[:3] * PERIOD_S
    low, high = np.array(BOX)
    assert (reached >= np.minimum(low, position) - 1e-9).all(), "left the box, or further away"
    assert (reached <= np.maximum(high, position) + 1e-9).all()
    assert decision.clamped == bool((decision.twist != wanted).any())


@given(
    instruction=st.none() | st.just("go"),
    image_age_s=maybe_age,
    state_age_s=maybe_age,
    state_needed=st.booleans(),
    action=st.none() | actions.map(plan),
    plans=st.integers(0, 3),
    fault=st.none() | st.just(Hold(Reason.INFERENCE_ERROR)),
    active=st.booleans(),
)
def test_motion_needs_everything_at_once(**parts: object) -> None:
    situation = Situation(**parts)  # type: ignore[arg-type]
    if isinstance(GATE.check(situation), Command):
        assert situation.active
        assert situation.instruction == "go"
        assert situation.fault is None
        assert situation.action is not None
        assert situation.image_age_s is not None
        assert abs(situation.image_age_s) <= 0.5
        if situation.state_needed:
            assert situation.state_age_s is not None
            assert abs(situation.state_age_s) <= 0.3


def test_a_little_too_fast_is_slowed_in_its_own_direction() -> None:
    command = GATE.check(replace(GOOD, action=plan([0.08, 0.08, 0, 0, 0, 0.5, 0.0])))
    assert isinstance(command, Command)
    np.testing.assert_allclose(command.twist, [0.4 / 2**0.5, 0.4 / 2**0.5, 0, 0, 0, 2.0])
    assert command.clamped


def test_what_is_asked_may_be_the_factor_times_the_limit_and_no_more() -> None:
    gate = SafetyGate(Limits(linear_m_s=0.5, angular_rad_s=2.0, hold_factor=2.0), GATE.timeouts)
    just = replace(GOOD, action=replace(plan([0.25, 0, 0, 0, 0, 0, 0]), period_s=0.25))
    over = replace(GOOD, action=replace(plan([0.26, 0, 0, 0, 0, 0, 0]), period_s=0.25))
    assert isinstance(gate.check(just), Command)
    assert isinstance(gate.check(over), Hold)


@pytest.mark.parametrize(("asked", "sent"), [(-0.2, 0.0), (0.4, 0.4), (1.3, 1.0)])
def test_a_gripper_is_asked_for_no_more_than_its_range(asked: float, sent: float) -> None:
    command = GATE.check(replace(GOOD, action=plan([0, 0, 0, 0, 0, 0, asked])))
    assert isinstance(command, Command) and command.gripper == sent


def test_outside_of_the_box_only_the_way_back_is_open() -> None:
    outside = replace(GOOD, position_m=np.array([0.6, 0.0, 0.2]))
    away = BOXED.check(replace(outside, action=plan([0.02, 0.02, 0, 0, 0, 0, 0])))
    back = BOXED.check(replace(outside, action=plan([-0.02, 0.02, 0, 0, 0, 0, 0])))
    assert isinstance(away, Command)
    assert isinstance(back, Command)
    np.testing.assert_allclose(away.twist[:3], [0.0, 0.1, 0.0])
    np.testing.assert_allclose(back.twist[:3], [-0.1, 0.1, 0.0])


def test_near_a_side_a_command_fits_the_whole_period_of_its_action() -> None:
    near = replace(GOOD, action=plan([0.08, 0, 0, 0, 0, 0, 0]), position_m=np.array([0.48, 0, 0.2]))
    command = BOXED.check(near)
    assert isinstance(command, Command) and command.twist[0] == pytest.approx(0.02 / PERIOD_S)


def test_an_arm_that_did_not_follow_back_is_not_sent_out_of_its_workspace() -> None:
    gate = SafetyGate(replace(LIMITS, workspace_m=BOX), Timeouts(state_s=0.5))
    for tick, asked in enumerate([-0.08] * 4 + [0.08]):
        command = gate.check(
            replace(
                GOOD,
                action=plan([asked, 0, 0, 0, 0, 0, 0]),
                position_m=np.array([0.49, 0.0, 0.2]),
                position_age_s=0.05 * tick,
            )
        )
    assert isinstance(command, Command)
    assert command.twist[0] == pytest.approx(0.01 / PERIOD_S), "it may still be where it was"


@given(
    wanted=st.lists(st.tuples(*[st.floats(-0.07, 0.07)] * 3), min_size=1, max_size=8),
    measured=st.lists(st.booleans(), min_size=80, max_size=80),
    command_s=st.sampled_from([0.02, 0.05, 0.2]),
    action_s=st.sampled_from([0.02, 0.2]),
    lag_s=st.floats(0.0, 0.1),
)
def test_however_old_the_pose_the_arm_stays_within_its_space(
    wanted: list[tuple[float, ...]],
    measured: list[bool],
    command_s: float,
    action_s: float,
    lag_s: float,
) -> None:
    shelf = ((0.35, -0.1, 0.0), (0.45, 0.1, 0.15))
    limits = replace(LIMITS, hold_factor=100.0, workspace_m=BOX, keep_out_m=(shelf,))
    gate = SafetyGate(limits, Timeouts(state_s=0.5), command_period_s=command_s)
    arm, now_s = np.array([0.3, 0.0, 0.2]), 0.0
    pose, pose_s = arm, now_s - lag_s
    path = [(now_s - 1.0, arm), (now_s, arm)]
    for tick, fresh in enumerate(measured):
        if fresh:
            pose_s = now_s - lag_s
            times, places = zip(*path, strict=True)
            pose = np.array([np.interp(pose_s, times, axis) for axis in np.transpose(places)])
        action = [*np.array(wanted[tick % len(wanted)]) * action_s / 0.2, 0, 0, 0, 1.0]
        decision = gate.check(
            replace(
                GOOD,
                action=replace(plan(action), period_s=action_s),
                position_m=pose,
                state_age_s=now_s - pose_s,
                position_age_s=now_s - pose_s,
                since_tick_s=command_s,
            )
        )
        step = decision.twist[:3] * command_s if isinstance(decision, Command) else np.zeros(3)
        for share in np.linspace(0, 1, 5):
            place = arm + share * step
            assert (place >= np.array(BOX[0]) - 1e-9).all()
            assert (place <= np.array(BOX[1]) + 1e-9).all()
            low, high = np.array(shelf)
            assert not ((place > low + 1e-9) & (place < high - 1e-9)).all()
        arm, now_s = arm + step, now_s + command_s
        path.append((now_s, arm))


def test_after_a_gap_in_which_the_arm_was_stopped_it_speeds_up_from_zero() -> None:
    motion = MotionLimits(linear_m_s2=1.0, gripper_per_s=1.0)
    gate = SafetyGate(replace(LIMITS, motion=motion), GATE.timeouts, command_period_s=0.05)
    cruising = replace(GOOD, action=plan([0.05, 0, 0, 0, 0, 0, 0.0]), gripper=1.0)
    for _ in range(10):
        before = gate.check(cruising)
    hold = gate.check(replace(cruising, since_tick_s=0.6, overrun_s=0.6, gripper=0.6))
    after = gate.check(replace(cruising, gripper=0.6))
    assert isinstance(before, Command) and isinstance(after, Command)
    assert isinstance(hold, Hold) and hold.reason is Reason.OVERRUN and "0.60 s" in hold.detail
    assert (before.twist[0], after.twist[0]) == (pytest.approx(0.25), pytest.approx(0.05))
    assert before.gripper == pytest.approx(0.5)
    assert after.gripper == pytest.approx(0.6 - 0.05), "as after any hold, from where it is"


def test_a_tick_that_comes_late_speeds_up_no_faster_than_the_longest_one() -> None:
    limits = replace(LIMITS, motion=MotionLimits(linear_m_s2=1.0))
    gate = SafetyGate(limits, GATE.timeouts, command_period_s=0.2)
    fast = replace(GOOD, action=plan([0.08, 0, 0, 0, 0, 0, 0]), since_tick_s=0.39)
    command = gate.check(fast)
    assert isinstance(command, Command) and command.twist[0] == pytest.approx(LONGEST_TICK_S * 1.0)


def test_an_arm_that_was_brought_to_a_stand_is_where_it_is_measured() -> None:
    gate = SafetyGate(replace(LIMITS, workspace_m=BOX), Timeouts(state_s=0.5))
    towards = replace(GOOD, action=plan([0.08, 0, 0, 0, 0, 0, 0]), position_age_s=0.3)
    for _ in range(8):
        gate.check(towards)
    gate.rest()
    command = gate.check(replace(towards, position_m=np.array([0.4, 0.0, 0.2])))
    assert isinstance(command, Command)
    assert command.twist[0] == pytest.approx(0.4), "what was commanded before is no way to go"


@pytest.mark.parametrize("side", ["workspace_m", "keep_out_m"])
def test_a_command_slows_down_for_a_side_within_the_limit_of_acceleration(side: str) -> None:
    wall = ((0.4, -1.0, 0.0), (0.6, 1.0, 0.4))
    box = ((-1.0, -1.0, 0.0), (0.4, 1.0, 0.4)) if side == "workspace_m" else (wall,)
    motion = MotionLimits(linear_m_s2=1.0)
    gate = SafetyGate(replace(LIMITS, motion=motion, **{side: box}), GATE.timeouts)
    place, speeds = np.array([-0.1, 0.0, 0.2]), [0.0]
    for _ in range(60):
        command = gate.check(replace(GOOD, action=plan([0.08, 0, 0, 0, 0, 0, 1]), position_m=place))
        assert isinstance(command, Command)
        speeds.append(command.twist[0])
        place = place + command.twist[:3] * 0.05
    assert np.abs(np.diff(speeds)).max() <= 1.0 * 0.05 + 1e-9
    assert max(speeds) == pytest.approx(0.4) and 0.39 < place[0] <= 0.4


@pytest.mark.parametrize(
    "wrong",
    [
        {"linear_m_s": 0.0},
        {"linear_m_s": math.inf},
        {"angular_rad_s": math.nan},
        {"hold_factor": 0.5},
        {"workspace_m": ((0, 0, 0), (1, 1, 0))},
        {"workspace_m": ((0, 0), (1, 1))},
        {"workspace_m": ((0, 0, 0), (1, 1, math.nan))},
        {"keep_out_m": (((0, 0, 0), (1, 1, 1)), ((0, 0, 0), (1, 1, 0)))},
    ],
)
def test_limits_that_limit_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SafetyError, match="correct it in the robot's file"):
        replace(LIMITS, **wrong)  # type: ignore[arg-type]


def test_the_first_cause_of_a_stop_stays() -> None:
    record = StopRecord()
    assert not record.note_hold(Hold(Reason.PLANNING), 0.0), "an arm that stood did not stop"
    record.note_motion()
    assert record.note_hold(Hold(Reason.STALE_IMAGE, "0.6 s old"), 1.0)
    assert not record.note_hold(Hold(Reason.CHUNK_EXHAUSTED), 2.0)
    record.note_motion()
    assert record.note_hold(Hold(Reason.NON_FINITE), 3.0)
    assert [(stop.reason, stop.time_s) for stop in record.stops] == [
        (Reason.STALE_IMAGE, 1.0),
        (Reason.NON_FINITE, 3.0),
    ]
    assert record.total == 2


def test_the_names_of_reasons_are_public() -> None:
    assert [str(reason) for reason in Reason] == [
        "inactive",
        "stopped",
        "disarmed",
        "takeover",
        "dead_man",
        "unwatched",
        "no_instruction",
        "overrun",
        "stale_instruction",
        "stale_image",
        "stale_state",
        "unsynchronised",
        "unfamiliar_scene",
        "inference_error",
        "non_finite",
        "out_of_limits",
        "planning",
        "stale_action",
        "chunk_exhausted",
    ]


# -- limits of a bundle -------------------------------------------------------------------------
names = st.sampled_from(MOTION_LIMITS)


@given(
    asked=st.dictionaries(names, st.floats(1e-3, 1e3)),
    motion=st.tuples(*[st.floats(1e-3, 1e3)] * 5),
)
def test_a_bundle_can_only_tighten_what_the_robot_allows(
    asked: dict[str, float], motion: tuple[float, ...]
) -> None:
    for name in [name for name in asked if name.endswith("s3")]:
        asked.setdefault(f"{name[:-1]}2", 1.0)
    assert check_motion_limits(asked) == asked
    robot = replace(LIMITS, motion=MotionLimits(*motion))
    tight = robot.tighten(asked)
    for name, own, result in (
        ("max_linear_m_s", robot.linear_m_s, tight.linear_m_s),
        ("max_angular_rad_s", robot.angular_rad_s, tight.angular_rad_s),
        ("max_linear_m_s2", robot.motion.linear_m_s2, tight.motion.linear_m_s2),
        ("max_angular_rad_s2", robot.motion.angular_rad_s2, tight.motion.angular_rad_s2),
        ("max_linear_m_s3", robot.motion.linear_m_s3, tight.motion.linear_m_s3),
        ("max_angular_rad_s3", robot.motion.angular_rad_s3, tight.motion.angular_rad_s3),
        ("gripper_max_per_s", robot.motion.gripper_per_s, tight.motion.gripper_per_s),
    ):
        assert result == min(own, asked.get(name, own))
    assert (tight.workspace_m, tight.keep_out_m) == (robot.workspace_m, robot.keep_out_m)
    assert tight.hold_factor == robot.hold_factor


def test_a_bundle_may_limit_what_the_robot_leaves_open() -> None:
    tight = LIMITS.tighten({"max_linear_m_s2": 0.5})
    assert tight.motion.linear_m_s2 == 0.5
    assert LIMITS.tighten({}) == LIMITS

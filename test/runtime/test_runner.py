"""The runner, on clocks that the test turns: when it moves, why it holds, what it recovers from."""

from __future__ import annotations

import numpy as np
import pytest
from rig import OTHER, PICTURE, SAY, STILL, MakeRig, Panic, Waiting, wait_for
from sample_policy import HORIZON

from vla_align_ros.errors import BackendError, ConfigurationError, ContractError
from vla_align_ros.runtime.safety import Step
from vla_align_ros.runtime.stops import Reason


def test_moves_once_it_has_words_a_frame_and_a_plan(make_rig: MakeRig) -> None:
    rig = make_rig()
    assert rig.hold_reason() is Reason.NO_INSTRUCTION
    rig.runner.set_instruction(SAY)
    assert rig.hold_reason() is Reason.STALE_IMAGE
    rig.feed()
    rig.pass_time(0.03)
    command = rig.command()
    assert command.action.instruction == SAY
    assert rig.runner.metrics.percentile_ms("total", 50) == pytest.approx(30.0)


def test_stops_once_and_then_is_silent(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    assert rig.runner.tick().command is not None
    rig.pass_time(0.51)
    first, second = rig.runner.tick(), rig.runner.tick()
    assert (first.stop, second.stop) == (True, False)
    assert first.hold is not None
    assert first.hold.reason is Reason.STALE_IMAGE
    rig.pass_time(10.0)
    rig.runner.tick()
    assert [stop.reason for stop in rig.runner.stops.stops] == [Reason.STALE_IMAGE]


def test_plans_from_a_clock_that_runs_ahead_are_counted_and_told(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    overdue = []
    for _ in range(3):
        rig.pass_time(0.3)
        stamp_s = rig.now_s + 0.3  # an action is 0.2 s long
        rig.runner.take_pose(np.array([0.3, 0, 0.2, 0, 0, 0]), stamp_s)
        rig.runner.take_gripper(1.0, stamp_s)
        refused = rig.runner.metrics.counted("plans_refused")
        rig.runner.take_image(lambda: PICTURE, stamp_s)
        wait_for(lambda n=refused + 1: rig.runner.metrics.counted("plans_refused") == n)
        step = rig.runner.tick()
        assert step.hold is not None and step.hold.reason is Reason.PLANNING
        assert "refused: stamped 0.30 s ahead of this node's clock" in step.hold.detail
        overdue.append(rig.runner.plan_overdue)
    assert overdue == [False, False, True]
    rig.pass_time(0.3)
    rig.feed()
    assert rig.runner.tick().command is not None
    assert not rig.runner.plan_overdue


def test_the_action_follows_the_time_since_the_picture(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    indices = []
    for _ in range(2):
        command = rig.command()
        indices.append(command.action.index)
        rig.pass_time(0.2)
    assert indices == [0, 1]


def test_other_words_discard_the_plan_within_a_tick(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    assert rig.hold_reason() is None
    assert rig.runner.set_instruction(OTHER)
    step = rig.runner.tick()
    assert step.stop
    assert step.hold is not None
    assert step.hold.reason is Reason.PLANNING
    rig.feed()
    step = rig.runner.tick()
    assert step.command is not None
    assert step.command.action.instruction == OTHER
    assert not rig.runner.set_instruction(OTHER.upper() + " ."), "the same words, said otherwise"
    assert rig.hold_reason() is None


@pytest.mark.parametrize("words", ["x" * 600, "...", "put\x07it"])
def test_words_that_are_refused_withdraw_the_old_ones(make_rig: MakeRig, words: str) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    with pytest.raises(ContractError):
        rig.runner.set_instruction(words)
    assert rig.hold_reason() is Reason.NO_INSTRUCTION


def test_an_answer_to_old_words_that_comes_late_is_not_executed(make_rig: MakeRig) -> None:
    engine = Waiting()
    rig = make_rig(engine)
    rig.begin(engine)
    rig.runner.set_instruction(OTHER)
    engine.go.set()
    rig.feed()
    command = rig.command()
    assert command.action.instruction == OTHER
    assert command.action.plan == 1, "the late answer was accepted"


@pytest.mark.parametrize(
    ("period_s", "wait_s", "planned"),
    [(0.033, 0.02, False), (0.033, 0.003, True), (0.4, 0.02, True)],
    ids=["a newer one comes soon", "hardly older", "slow camera"],
)
def test_a_picture_that_had_to_wait_is_left_for_a_newer_one(
    make_rig: MakeRig, period_s: float, wait_s: float, planned: bool
) -> None:
    engine = Waiting()
    rig = make_rig(engine, replan_period_s=0.02)
    rig.begin(engine)
    rig.pass_time(period_s)
    rig.feed(wait=False)
    rig.pass_time(wait_s)
    engine.go.set()
    counted = rig.runner.metrics.counted
    wait_for(lambda: counted("inference_count") + counted("frames_left") == 2)
    assert counted("frames_left") == (not planned)
    rig.pass_time(period_s - wait_s)
    rig.feed(wait=False)  # due at once, however lately the one before was offered
    wait_for(lambda: counted("inference_count") == 2 + planned)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.full((HORIZON, 7), np.nan), Reason.NON_FINITE),
        (BackendError("the engine is gone"), Reason.INFERENCE_ERROR),
        (Panic("index out of bounds"), Reason.INFERENCE_ERROR),
    ],
    ids=["nan", "error", "panic"],
)
def test_a_failing_inference_holds_at_once_until_the_next_good_one(
    make_rig: MakeRig, bad: np.ndarray | BaseException, reason: Reason
) -> None:
    answers: list[np.ndarray | None] = [STILL, bad, STILL]

    def answer(_: object) -> np.ndarray:
        value = answers.pop(0)
        if isinstance(value, BaseException):
            raise value
        return value

    rig = make_rig(answer)
    rig.runner.set_instruction(SAY)
    for expected in (None, reason, None):
        rig.feed()
        assert rig.hold_reason() is expected
        rig.pass_time(0.05)
    assert len(rig.faults) == 1
    assert rig.runner.metrics.counted("inference_errors") == 1


def test_a_picture_that_cannot_be_read_is_a_fault_too(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()

    def fail() -> np.ndarray:
        raise ContractError("no JPEG")

    rig.planned.clear()
    rig.runner.take_image(fail, rig.now_s)
    assert rig.planned.wait(5.0)
    assert rig.hold_reason() is Reason.INFERENCE_ERROR


def test_a_repeated_picture_ages_by_its_stamp(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    frozen_s = rig.now_s
    rig.pass_time(0.6)
    rig.runner.take_image(lambda: PICTURE, frozen_s)
    assert rig.hold_reason() is Reason.STALE_IMAGE


def test_a_clock_that_stands_still_does_not_keep_the_arm_going(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    rig.steady_s += 0.6
    assert rig.hold_reason() is Reason.STALE_IMAGE


def test_no_action_is_followed_for_ever_by_a_clock_that_stands_still(make_rig: MakeRig) -> None:
    rig = make_rig(np.full((HORIZON, 7), 0.01))
    rig.runner.set_instruction(SAY)
    rig.feed()
    moved_s = 0.0
    while rig.runner.tick().command is not None:
        rig.steady_s += 0.05
        moved_s += 0.05
        rig.feed(wait=False)  # under the same stamp, as of drivers that stamp nothing
        assert moved_s < 1.0, "the first action for ever"
    assert moved_s == pytest.approx(0.55), "the picture's timeout"
    assert rig.runner.hold is not None and rig.runner.hold.reason is Reason.STALE_IMAGE
    assert "stood still for 0.55 s" in rig.runner.hold.detail
    assert "/clock" in rig.runner.hold.detail

    rig.pass_time(0.1)
    assert rig.hold_reason() is Reason.PLANNING, "not by a plan from before it went on"
    rig.feed()
    assert rig.command()


def test_a_clock_that_moves_in_coarse_steps_lets_the_arm_move(make_rig: MakeRig) -> None:
    rig = make_rig(np.full((HORIZON, 7), 0.01))
    rig.runner.set_instruction(SAY)
    rig.feed()
    for tick in range(40):
        assert rig.command()
        rig.steady_s += 0.05
        if tick % 4 == 3:  # /clock at 5 Hz
            rig.now_s += 0.2
            rig.feed()


def test_a_clock_that_jumps_back_starts_afresh(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    assert rig.hold_reason() is None
    rig.now_s -= 50.0
    assert rig.hold_reason() is Reason.STALE_IMAGE
    rig.feed()
    assert rig.hold_reason() is None


@pytest.mark.parametrize("jump_s", [-0.3, -50.0, 50.0])
def test_where_the_clock_jumps_it_is_known_where_to_stop(make_rig: MakeRig, jump_s: float) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    assert rig.hold_reason() is None
    pose = rig.runner.fresh_pose()
    rig.now_s += jump_s
    rig.steady_s += 0.05
    step = rig.runner.tick()
    assert step.stop and step.hold is not None
    assert ("the clock went back by" in step.hold.detail) == (jump_s < 0)
    np.testing.assert_array_equal(rig.runner.fresh_pose(), pose)
    rig.steady_s += 0.46
    assert rig.runner.fresh_pose() is None, "a target where the arm was long ago"


def test_an_inference_under_way_while_the_clock_jumps_back_leaves_no_plan(
    make_rig: MakeRig,
) -> None:
    engine = Waiting()
    rig = make_rig(engine)
    rig.runner.set_instruction(SAY)
    rig.runner.tick()
    rig.feed(wait=False)
    assert engine.begun.wait(5.0)
    rig.now_s -= 0.15  # less than a period: the stamp alone would not tell
    assert rig.hold_reason() is Reason.STALE_IMAGE
    engine.go.set()
    wait_for(lambda: rig.runner.metrics.counted("inference_count") == 1)
    wait_for(lambda: not rig.runner._planner._worker.busy)  # type: ignore[union-attr]
    assert not rig.planned.is_set(), "a plan of before the jump was taken"
    rig.feed()
    assert rig.hold_reason() is None, "the plan of before the jump keeps out the one of now"


def test_frames_between_two_replannings_are_not_planned_on(make_rig: MakeRig) -> None:
    rig = make_rig(replan_period_s=0.2)
    rig.runner.set_instruction(SAY)
    for count in (1, 1, 1, 1, 2):
        rig.feed(wait=len(rig.backend.calls) < count)
        assert len(rig.backend.calls) == count
        rig.pass_time(0.05)


def test_does_not_plan_without_the_state_it_was_trained_with(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.runner.take_image(lambda: PICTURE, rig.now_s)
    assert rig.hold_reason() is Reason.STALE_STATE
    assert not rig.backend.calls


def test_an_inactive_runner_forgets_and_takes_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    rig.runner.tick()
    assert rig.runner.deactivate()
    assert rig.runner.tick() == Step(hold=rig.runner.hold)
    assert rig.hold_reason() is Reason.INACTIVE
    assert not rig.runner.set_instruction(SAY)
    rig.runner.activate()
    assert rig.hold_reason() is Reason.NO_INSTRUCTION


def test_a_hung_inference_is_left_behind_and_never_joined_by_a_second(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_align_ros.runtime.planner.STOP_WORKER_S", 0.05)
    engine = Waiting()
    rig = make_rig(engine)
    rig.begin(engine)
    assert not rig.runner.deactivate()
    with pytest.raises(ConfigurationError, match="has not returned"):
        rig.runner.activate()
    engine.go.set()
    rig.runner._planner._worker._thread.join(5.0)  # type: ignore[union-attr]
    rig.runner.activate()
    rig.runner.set_instruction(SAY)
    assert rig.hold_reason() is Reason.STALE_IMAGE, "the late answer came through"

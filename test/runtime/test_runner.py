"""The runner, on clocks that the test turns: when it moves, why it holds, what it recovers from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from sample_policy import HORIZON, SIZE, make_bundle, make_processor, make_spec

from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.contract.spec import PolicySpec
from vla_align_ros.errors import BackendError, ConfigurationError, ContractError, SafetyError
from vla_align_ros.inference.fake import FakeBackend
from vla_align_ros.runtime.interlock import Interlock, InterlockConfig
from vla_align_ros.runtime.motion import MotionLimits
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.runner import PolicyRunner
from vla_align_ros.runtime.safety import Limits, SafetyGate, Step, Timeouts
from vla_align_ros.runtime.stops import Hold, Reason

PICTURE = np.zeros((24, 32, 3), np.uint8)
SAY, OTHER = "put the carrot on the plate", "put the cube on the cloth"
LIMITS, TIMEOUTS = Limits(10.0, 50.0), Timeouts(image_s=0.5, state_s=0.5)
STILL = np.zeros((HORIZON, 7))


class Rig:
    """A runner with a backend of the test's choice and time that stands until it is moved."""

    def __init__(
        self,
        bundle: object,
        answer: object,
        *,
        interlock: InterlockConfig | None = None,
        limits: Limits = LIMITS,
        timeouts: Timeouts = TIMEOUTS,
        **options: object,
    ) -> None:
        self.now_s = self.steady_s = 100.0
        self.planned = threading.Event()
        self.faults: list[Exception] = []
        self.backend = FakeBackend(answer)  # type: ignore[arg-type]
        self.runner = PolicyRunner(
            Policy(bundle, self.backend),  # type: ignore[arg-type]
            SafetyGate(limits, timeouts),
            clock=lambda: self.now_s,
            steady=lambda: self.steady_s,
            interlock=Interlock(interlock or InterlockConfig(start_armed=True)),
            on_chunk=lambda _: self.planned.set(),
            on_fault=lambda _, error: (self.faults.append(error), self.planned.set()),
            **options,  # type: ignore[arg-type]
        )
        self.runner.activate()

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.steady_s += seconds

    def feed(self, *, wait: bool = True) -> None:
        """A frame with fresh state; waits until it is planned on."""
        self.planned.clear()
        self.runner.take_pose(np.array([0.3, 0, 0.2, 0, 0, 0]), self.now_s)
        self.runner.take_gripper(1.0, self.now_s)
        self.runner.take_image(lambda: PICTURE, self.now_s)
        if wait:
            assert self.planned.wait(5.0), "nothing was planned"

    def hold_reason(self) -> Reason | None:
        step = self.runner.tick()
        return None if step.hold is None else step.hold.reason


def wait_for(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> object:
    return make_bundle(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def make_rig(bundle: object) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(answer: object = STILL, **options: object) -> Rig:
        rigs.append(Rig(bundle, answer, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.runner.deactivate()


MakeRig = Callable[..., Rig]


def test_moves_once_it_has_words_a_frame_and_a_plan(make_rig: MakeRig) -> None:
    rig = make_rig()
    assert rig.hold_reason() is Reason.NO_INSTRUCTION
    rig.runner.set_instruction(SAY)
    assert rig.hold_reason() is Reason.STALE_IMAGE
    rig.feed()
    rig.pass_time(0.03)
    step = rig.runner.tick()
    assert step.command is not None
    assert step.command.action.instruction == SAY
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


def test_the_action_follows_the_time_since_the_picture(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    indices = []
    for _ in range(2):
        step = rig.runner.tick()
        assert step.command is not None
        indices.append(step.command.action.index)
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
    begun, go = threading.Event(), threading.Event()

    def answer(_: object) -> np.ndarray:
        begun.set()
        assert go.wait(5.0)
        return STILL

    rig = make_rig(answer)
    rig.runner.set_instruction(SAY)
    rig.feed(wait=False)
    assert begun.wait(5.0)
    rig.runner.set_instruction(OTHER)
    go.set()
    rig.feed()
    step = rig.runner.tick()
    assert step.command is not None
    assert step.command.action.instruction == OTHER
    assert step.command.action.plan == 1, "the late answer was accepted"


@pytest.mark.parametrize(
    ("period_s", "wait_s", "planned"),
    [(0.033, 0.02, False), (0.033, 0.003, True), (0.4, 0.02, True)],
    ids=["a newer one comes soon", "hardly older", "slow camera"],
)
def test_a_picture_that_had_to_wait_is_left_for_a_newer_one(
    make_rig: MakeRig, period_s: float, wait_s: float, planned: bool
) -> None:
    begun, go = threading.Event(), threading.Event()

    def answer(_: object) -> np.ndarray:
        begun.set()
        assert go.wait(5.0)
        return STILL

    rig = make_rig(answer, replan_period_s=0.02)
    rig.runner.set_instruction(SAY)
    rig.feed(wait=False)
    assert begun.wait(5.0)
    rig.pass_time(period_s)
    rig.feed(wait=False)
    rig.pass_time(wait_s)
    go.set()
    counted = rig.runner.metrics.counted
    wait_for(lambda: counted("inference_count") + counted("frames_left") == 2)
    assert counted("frames_left") == (not planned)
    rig.pass_time(period_s - wait_s)
    rig.feed(wait=False)  # due at once, however lately the one before was offered
    wait_for(lambda: counted("inference_count") == 2 + planned)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(np.full((HORIZON, 7), np.nan), Reason.NON_FINITE), (None, Reason.INFERENCE_ERROR)],
    ids=["nan", "error"],
)
def test_a_failing_inference_holds_at_once_until_the_next_good_one(
    make_rig: MakeRig, bad: np.ndarray | None, reason: Reason
) -> None:
    answers: list[np.ndarray | None] = [STILL, bad, STILL]

    def answer(_: object) -> np.ndarray:
        value = answers.pop(0)
        if value is None:
            raise BackendError("the engine is gone")
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


def test_a_clock_that_jumps_back_starts_afresh(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.runner.set_instruction(SAY)
    rig.feed()
    assert rig.hold_reason() is None
    rig.now_s -= 50.0
    assert rig.hold_reason() is Reason.STALE_IMAGE
    rig.feed()
    assert rig.hold_reason() is None


def test_an_inference_under_way_while_the_clock_jumps_back_leaves_no_plan(
    make_rig: MakeRig,
) -> None:
    begun, go = threading.Event(), threading.Event()

    def answer(_: object) -> np.ndarray:
        begun.set()
        assert go.wait(5.0)
        return STILL

    rig = make_rig(answer)
    rig.runner.set_instruction(SAY)
    rig.runner.tick()
    rig.feed(wait=False)
    assert begun.wait(5.0)
    rig.now_s -= 0.15  # less than a period: the stamp alone would not tell
    assert rig.hold_reason() is Reason.STALE_IMAGE
    go.set()
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
    begun, go = threading.Event(), threading.Event()

    def hang(_: object) -> np.ndarray:
        begun.set()
        assert go.wait(5.0)
        return STILL

    rig = make_rig(hang)
    rig.runner.set_instruction(SAY)
    rig.feed(wait=False)
    assert begun.wait(5.0)
    assert not rig.runner.deactivate()
    with pytest.raises(ConfigurationError, match="has not returned"):
        rig.runner.activate()
    go.set()
    rig.runner._planner._worker._thread.join(5.0)  # type: ignore[union-attr]
    rig.runner.activate()
    rig.runner.set_instruction(SAY)
    assert rig.hold_reason() is Reason.STALE_IMAGE, "the late answer came through"


# -- several cameras, and the state of their instant ----------------------------------------------
class Seeing:
    """A policy that keeps what it sees, with the processor that a bundle would hold."""

    def __init__(self, spec: PolicySpec) -> None:
        self.processor = make_processor(spec)
        self.spec = spec
        self.last_timings_ms: dict[str, float] = {}
        self.seen: list[Observation] = []

    def infer(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        inputs = self.processor.prepare(observation)
        assert inputs["pixel_values"].size == len(self.spec.cameras) * 3 * SIZE * SIZE
        return ActionChunk(STILL, 0.2, observation.stamp_s, observation.instruction)


def make_seeing(spec: PolicySpec) -> Rig:
    rig = Rig.__new__(Rig)
    rig.now_s = rig.steady_s = 100.0
    rig.planned, rig.faults = threading.Event(), []
    rig.policy = Seeing(spec)  # type: ignore[attr-defined]
    rig.runner = PolicyRunner(
        rig.policy,  # type: ignore[attr-defined]
        SafetyGate(LIMITS, TIMEOUTS),
        clock=lambda: rig.now_s,
        steady=lambda: rig.steady_s,
        sync_tolerance_s=0.03,
        interlock=Interlock(InterlockConfig(start_armed=True)),
        on_chunk=lambda _: rig.planned.set(),
    )
    rig.runner.activate()
    rig.runner.set_instruction(SAY)
    return rig


@pytest.fixture
def two() -> Iterator[Rig]:
    rig = make_seeing(make_spec(cameras=2))
    yield rig
    rig.runner.deactivate()


def take(rig: Rig, camera: str, grey: int, stamp_s: float) -> None:
    rig.runner.take_image(lambda: np.full((24, 32, 3), grey, np.uint8), stamp_s, camera)


def take_state(rig: Rig, x_m: float, stamp_s: float) -> None:
    rig.runner.take_pose(np.array([x_m, 0, 0.2, 0, 0, 0]), stamp_s)
    rig.runner.take_gripper(1.0, stamp_s)


def test_plans_on_pictures_and_state_of_one_instant(two: Rig) -> None:
    take_state(two, 0.1, two.now_s - 0.10)
    take_state(two, 0.2, two.now_s - 0.05)
    take_state(two, 0.3, two.now_s)
    take(two, "front", 10, two.now_s - 0.05)
    assert not two.planned.is_set()
    take(two, "wrist", 20, two.now_s - 0.04)
    assert two.planned.wait(5.0)
    seen = two.policy.seen[0]  # type: ignore[attr-defined]
    assert {name: int(image[0, 0, 0]) for name, image in seen.images.items()} == {
        "front": 10,
        "wrist": 20,
    }
    assert seen.stamp_s == pytest.approx(two.now_s - 0.05), "the oldest picture dates the plan"
    assert seen.state is not None and seen.state[0] == pytest.approx(0.2), "state of that instant"
    assert two.runner.tick().command is not None


def test_a_camera_that_is_missing_holds_and_is_named(two: Rig) -> None:
    take_state(two, 0.3, two.now_s)
    take(two, "front", 10, two.now_s)
    step = two.runner.tick()
    assert step.hold is not None
    assert step.hold.reason is Reason.STALE_IMAGE
    assert "no image of wrist" in step.hold.detail


def test_one_camera_that_stops_holds_while_the_other_goes_on(two: Rig) -> None:
    take_state(two, 0.3, two.now_s)
    take(two, "wrist", 20, two.now_s)
    take(two, "front", 10, two.now_s)
    assert two.planned.wait(5.0)
    assert two.runner.tick().command is not None
    for _ in range(11):
        two.pass_time(0.05)
        take_state(two, 0.3, two.now_s)
        take(two, "front", 10, two.now_s)
    step = two.runner.tick()
    assert step.hold is not None and step.stop
    assert step.hold.reason is Reason.STALE_IMAGE
    assert "image of wrist is 0.55 s old" in step.hold.detail


@pytest.mark.parametrize("late", ["wrist", "state"])
def test_inputs_that_never_fit_together_hold_with_a_name_of_its_own(two: Rig, late: str) -> None:
    for _ in range(4):
        two.pass_time(0.2)
        take_state(two, 0.3, two.now_s - (0.1 if late == "state" else 0.0))
        take(two, "front", 10, two.now_s)
        take(two, "wrist", 20, two.now_s - (0.1 if late == "wrist" else 0.0))
    step = two.runner.tick()
    assert step.hold is not None
    assert step.hold.reason is Reason.UNSYNCHRONISED
    assert "0.100 s" in step.hold.detail and "0.030 s at most" in step.hold.detail
    assert not two.planned.is_set()


def test_a_picture_of_no_camera_of_the_policy_is_refused(two: Rig) -> None:
    for camera in ("top", None):
        with pytest.raises(ContractError, match="front or wrist"):
            two.runner.take_image(lambda: PICTURE, two.now_s, camera)


def test_a_picture_stamped_far_ahead_is_not_planned_on() -> None:
    rig = make_seeing(make_spec(state=False))
    take(rig, "front", 10, rig.now_s + 50.0)
    step = rig.runner.tick()
    assert step.hold is not None and step.hold.reason is Reason.STALE_IMAGE
    time.sleep(0.05)
    take(rig, "front", 20, rig.now_s)
    assert rig.planned.wait(5.0)
    assert rig.runner.tick().command is not None, "the picture from ahead keeps out that of now"
    assert len(rig.policy.seen) == 1  # type: ignore[attr-defined]
    rig.runner.deactivate()


# -- what a person decides ----------------------------------------------------------------------
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
    go_on = threading.Event()

    def think(_: object) -> np.ndarray:
        go_on.wait(5.0)
        return STILL

    rig = make_rig(think)
    rig.runner.set_instruction(SAY)
    rig.feed(wait=False)
    rig.pass_time(0.1)
    rig.runner.interlock.stop(STOP)
    assert rig.hold_reason() is Reason.STOPPED
    go_on.set()
    reset_and_arm(rig)
    for _ in range(20):
        time.sleep(0.01)
        assert rig.hold_reason() in (Reason.PLANNING, Reason.STALE_IMAGE)


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
    step = rig.runner.tick()
    assert step.command is not None and step.command.gripper == 1.0
    rig.runner.interlock.take_over("joystick")
    assert rig.hold_reason() is Reason.TAKEOVER
    rig.runner.take_gripper(0.2, rig.now_s)  # the person closes it
    rig.pass_time(0.1)
    rig.runner.interlock.take_over(None)
    assert rig.hold_reason() is Reason.PLANNING
    rig.pass_time(0.1)
    rig.feed()
    step = rig.runner.tick()
    assert step.command is not None
    assert step.command.gripper == pytest.approx(0.3), "a tenth of a second from where it is"


def test_where_the_pose_stops_coming_the_arm_is_not_sent_out_of_its_workspace(
    make_rig: MakeRig,
) -> None:
    down = np.zeros((HORIZON, 7))
    down[:, 2] = -3.0
    box = ((0.0, -1.0, 0.05), (1.0, 1.0, 1.0))
    rig = make_rig(down, limits=Limits(0.25, 50.0, hold_factor=100.0, workspace_m=box))
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
        step = rig.runner.tick()
        assert step.command is not None and step.command.clamped
        speeds.append(step.command.twist[0])
    assert np.allclose(np.diff([0.0, *speeds]), 0.01, rtol=1e-3)

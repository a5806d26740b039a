"""The runner, on clocks that the test turns: when it moves, why it holds, what it recovers from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sample_policy import HORIZON, make_bundle

from vla_align_ros.errors import BackendError, ConfigurationError, ContractError
from vla_align_ros.inference.fake import FakeBackend
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.runner import PolicyRunner, Step
from vla_align_ros.runtime.safety import Limits, Reason, SafetyGate, Timeouts

PICTURE = np.zeros((24, 32, 3), np.uint8)
SAY, OTHER = "put the carrot on the plate", "put the cube on the cloth"
GATE = SafetyGate(Limits(10.0, 50.0), Timeouts(image_s=0.5, state_s=0.5))
STILL = np.zeros((HORIZON, 7))


class Rig:
    """A runner with a backend of the test's choice and time that stands until it is moved."""

    def __init__(self, bundle: object, answer: object, **options: object) -> None:
        self.now_s = self.steady_s = 100.0
        self.planned = threading.Event()
        self.faults: list[Exception] = []
        self.backend = FakeBackend(answer)  # type: ignore[arg-type]
        self.runner = PolicyRunner(
            Policy(bundle, self.backend),  # type: ignore[arg-type]
            GATE,
            clock=lambda: self.now_s,
            steady=lambda: self.steady_s,
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


def test_two_cameras_are_refused_by_name(tmp_path: Path) -> None:
    class Two:
        from sample_policy import make_spec

        spec = make_spec(cameras=2)

    with pytest.raises(ConfigurationError, match="2 cameras"):
        PolicyRunner(Two(), GATE, clock=lambda: 0.0)  # type: ignore[arg-type]

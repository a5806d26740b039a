"""Several cameras, and the state of their instant."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from rig import PICTURE, SAY, STILL, Rig
from sample_policy import SIZE, make_processor, make_spec

from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.contract.spec import PolicySpec
from vla_align_ros.errors import ContractError
from vla_align_ros.runtime.stops import Reason


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
    rig = Rig(Seeing(spec), sync_tolerance_s=0.03)
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
